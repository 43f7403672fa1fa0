"""How far each unit of a candidate lies from the reference, beside what its way of storing explains."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.diagnose.hybrid import Pair, Unit
from quantriage.diagnose.lint.nearest import expected_error
from quantriage.diagnose.own_rounding import own_grid
from quantriage.numerics.stored_weight import StoredWeight

DENSE = "dense"


@dataclass(frozen=True)
class UnitError:
    """Errors are Frobenius norms of the difference over the reference's.

    relative: of the unit's main tensor. nearest: of plain rounding in its scheme, None where there is none.
    expected: what its way of storing explains. beside: the largest error of its other tensors (a bias).
    faulty: NaN or infinite values.
    """

    layout: str
    bits: float
    relative: float
    nearest: float | None
    expected: float
    beside: float
    faulty: int

    @property
    def differs(self) -> bool:
        """Whether anything of the unit is not bit for bit the reference's."""
        return self.relative > 0 or self.beside > 0

    @property
    def quantized(self) -> bool:
        """Whether the main tensor is stored in codes."""
        return self.layout != DENSE


def unit_errors(pair: Pair, units: Iterable[Unit]) -> dict[str, UnitError]:
    """Errors by unit. Reads both checkpoints once. Memory: two tensors, their difference and a rounding."""
    return {unit.name: _unit_error(pair, unit) for unit in units}


def site_weight(pair: Pair, unit: Unit, from_candidate: bool) -> Tensor:
    """A unit's main tensor as [out, in] if it is a site's, float32."""
    weight = pair.read(unit.tensors[0], from_candidate).to(torch.float32)
    return weight.T.contiguous() if unit.site is not None and unit.site.transposed else weight


def stored_of(pair: Pair, unit: Unit) -> StoredWeight | None:
    """How the candidate stores a unit's main tensor; None if dense."""
    name = pair.stored_name(unit.tensors[0], True)
    module = name.removesuffix(".weight")
    return None if module == name else pair.candidate.stored(module)


def _unit_error(pair: Pair, unit: Unit) -> UnitError:
    stored = stored_of(pair, unit)
    ours, theirs = (site_weight(pair, unit, side) for side in (False, True))
    faulty = int((~torch.isfinite(theirs)).sum())
    beside = 0.0
    for name in unit.tensors[1:]:
        other = pair.read(name, True)
        faulty += int((~torch.isfinite(other)).sum())
        beside = max(beside, _relative(pair.read(name, False).float(), other.float()))
    nearest: float | None = None
    if stored is None:
        dtype = pair.read(unit.tensors[0], True).dtype
        cast = ours.to(dtype).to(torch.float32) if dtype.is_floating_point else ours
        nearest = expected = _relative(ours, cast)
        layout, bits = DENSE, 8.0 * dtype.itemsize
    else:
        own = own_grid(stored)
        if own is not None and tuple(ours.shape) == stored.shape:
            nearest = _relative(ours, own.nearest(ours))
        expected = nearest if nearest is not None else expected_error(ours, stored)
        layout = str(stored.scheme) if stored.scheme is not None else stored.layout
        bits = stored.bits_per_weight
    relative = _relative(ours, theirs) if not faulty else 0.0
    return UnitError(layout, bits, relative, nearest, expected, 0.0 if faulty else beside, faulty)


def _relative(reference: Tensor, other: Tensor) -> float:
    """0 if equal; against a reference of zeros, the norm of the other."""
    error = float(torch.linalg.vector_norm(other - reference, dtype=torch.float64))
    norm = float(torch.linalg.vector_norm(reference, dtype=torch.float64))
    return error / norm if norm > 0 else error
