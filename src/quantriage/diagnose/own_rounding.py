"""A weight rounded anew in the scheme in which a checkpoint stores it: the yardstick for how it was done.

Integer codes in groups of columns can be rounded plainly and with error feedback; groups may be made of
columns in any order, as GPTQ's act-order leaves them. Block formats and tables (k-quants, NF4) can be rounded
plainly. What remains (floats, types without single codes) has no yardstick but the same-norm control.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from quantriage.diagnose.fisher import nearest
from quantriage.diagnose.lint.plain_grid import has_plain_grid, round_plainly
from quantriage.errors import BudgetError
from quantriage.formats.weight_source import ReplacedWeights, WeightSource
from quantriage.methods.protocol import SiteStatistics
from quantriage.methods.registry import METHODS
from quantriage.numerics.schemes import IntGrid, PerGroup, Scheme
from quantriage.numerics.stored_weight import StoredWeight


@dataclass(frozen=True)
class OwnScheme:
    """An integer scheme, and the order [in] that brings each group's columns together; None: they are."""

    scheme: Scheme
    order: Tensor | None = None

    def nearest(self, weight: Tensor) -> Tensor:
        """Plain rounding of weight [out, in], float32, dequantized."""
        return self._restored(nearest(self._ordered(weight), self.scheme).dequantize())

    def best(self, weight: Tensor, statistics: SiteStatistics) -> Tensor:
        """The best rounding of weight [out, in] known here, dequantized: GPTQ, loss-weighted Hessian."""
        hessian = statistics.hessian
        if self.order is not None:
            statistics = replace(statistics, hessian=hessian[self.order][:, self.order].contiguous())
        (result,) = METHODS["gptq"].quantize(self._ordered(weight), statistics, [self.scheme])
        return self._restored(result.quantized.dequantize())

    def _ordered(self, weight: Tensor) -> Tensor:
        return (weight if self.order is None else weight[:, self.order]).contiguous()

    def _restored(self, weight: Tensor) -> Tensor:
        return weight if self.order is None else weight[:, torch.argsort(self.order)].contiguous()


@dataclass(frozen=True)
class PlainGrid:
    """The grid of a stored weight that is no integer scheme."""

    stored: StoredWeight

    def nearest(self, weight: Tensor) -> Tensor:
        """Plain rounding of weight [out, in], float32, dequantized."""
        return round_plainly(weight, self.stored)


def rounded_anew(
    inner: WeightSource, schemes: Mapping[str, OwnScheme | PlainGrid], transposed: Collection[str]
) -> ReplacedWeights:
    """`inner` with plain rounding of some tensors, made as they are read; `transposed`: stored [in, out]."""

    def rounded(name: str) -> Tensor:
        weight = inner.get(name).to(torch.float32)
        flip = name in transposed
        found = schemes[name].nearest(weight.T if flip else weight)
        return found.T if flip else found

    return ReplacedWeights(inner, {name: partial(rounded, name) for name in schemes})


def own_scheme(stored: StoredWeight | None) -> OwnScheme | None:
    """The scheme of a stored weight, if it can be rounded here."""
    if stored is None:
        return None
    found = OwnScheme(stored.scheme) if stored.scheme is not None else _reordered(stored)
    if found is None:
        return None
    try:
        found.scheme.group_width(stored.shape[1])
    except BudgetError:  # a last group that is short
        return None
    return found


def own_grid(stored: StoredWeight | None) -> OwnScheme | PlainGrid | None:
    """What rounds a weight plainly as it is stored; None where nothing here can."""
    scheme = own_scheme(stored)
    if scheme is not None or stored is None or stored.scheme is not None:
        return scheme
    return PlainGrid(stored) if has_plain_grid(stored) else None


def _reordered(stored: StoredWeight) -> OwnScheme | None:
    """Equal groups of columns in any order, with integer zero points or none."""
    groups, bits = stored.column_group, (stored.levels - 1).bit_length()
    if groups is None or stored.offset is not None or stored.levels != 1 << bits or not 2 <= bits <= 8:
        return None
    sizes = torch.bincount(groups.to(torch.int64))
    if int(sizes.min()) != int(sizes.max()):
        return None
    center = 1 << (bits - 1)
    symmetric = stored.zero_point is None or bool((stored.zero_point == center).all())
    scheme = Scheme(IntGrid(bits, symmetric), PerGroup(int(sizes[0])), "float16")
    return OwnScheme(scheme, torch.argsort(groups.to(torch.int64), stable=True))
