"""A quantized checkpoint again with some weights replaced, everything else byte for byte as it was.

A rewriter knows one file family: how each weight is stored, how else it could be stored there, and how to
put new values into the file. It chooses no codes: a `Rounding` from the rooms above does, so that no format
knows a method. Formats without an encoder here (NF4, FP8, HQQ) can still hold a weight in full precision, by
the list of exceptions that each of them has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from quantriage.errors import CheckpointError
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import SCALE_BITS, IntGrid, PerGroup, ScaleDtype, Scheme
from quantriage.numerics.stored_weight import StoredWeight

DENSE = "dense"


@dataclass(frozen=True)
class Way:
    """One way of storing a weight. label: for people, equal for equal ways.

    scheme: integers that a rounding chooses; None for full precision or a GGUF type, which the label names.
    nbytes: all that is stored for the weight.
    """

    label: str
    nbytes: int
    scheme: Scheme | None = None


@dataclass(frozen=True)
class Replacement:
    """New bytes of one weight. tensors: by the file's names; value: what is read back, as the model has it.

    module: whose way of storing changed (for the config), with `way`; None if it is stored as before.
    removed: names of the file that go.
    """

    name: str
    tensors: Mapping[str, Tensor]
    value: Tensor
    way: Way
    module: str | None = None
    removed: tuple[str, ...] = ()


class Rounding(Protocol):
    """What is known of a weight's input, and how to round with it."""

    @property
    def importance(self) -> Tensor | None:
        """Of each column [in], not negative; None if nothing is known."""
        ...

    def quantize(self, weight: Tensor, scheme: Scheme, order: Tensor | None) -> QuantizedTensor:
        """Weight [out, in] in a scheme, its columns taken in `order` [in] if there is one, and left so."""
        ...


class Rewriter(Protocol):
    """One opened checkpoint that can be written again. Raises CheckpointError."""

    @property
    def fuses(self) -> bool:
        """Whether engines join weights such as q, k and v of this family, which then need one scheme."""
        ...

    def own(self, name: str) -> Way | str:
        """How tensor `name` is stored, or why it cannot be written so."""
        ...

    def raised(self, name: str, menu: Sequence[Scheme]) -> tuple[Way, ...]:
        """Larger ways in which it could be stored; integer schemes are taken from `menu`."""
        ...

    def replace(self, name: str, way: Way, tensor: Tensor, rounding: Rounding | None) -> Replacement:
        """The tensor (shape and scaling as in this checkpoint) stored in a way of `own` or `raised`."""
        ...

    def write(self, replacements: Sequence[Replacement], out: Path) -> Path:
        """Write all of the checkpoint to the folder `out`; returns what to open."""
        ...


def grouped_scheme(stored: StoredWeight) -> Scheme | None:
    """The integer scheme of a stored weight, also where equal groups are made of columns in any order."""
    groups, bits = stored.column_group, (stored.levels - 1).bit_length()
    if stored.scheme is not None or groups is None or stored.offset is not None:
        return stored.scheme
    if stored.levels != 1 << bits or not 2 <= bits <= 8:
        return None
    sizes = torch.bincount(groups.to(torch.int64))
    dtypes: dict[str, ScaleDtype] = {name: name for name in SCALE_BITS}
    if int(sizes.min()) != int(sizes.max()) or stored.scale_dtype not in dtypes:
        return None
    center = 1 << (bits - 1)
    symmetric = stored.zero_point is None or bool((stored.zero_point == center).all())
    return Scheme(IntGrid(bits, symmetric), PerGroup(int(sizes[0])), dtypes[stored.scale_dtype])


def rounded_in_order(
    tensor: Tensor, scheme: Scheme, column_group: Tensor | None, rounding: Rounding
) -> tuple[QuantizedTensor, Tensor]:
    """A weight [out, in] rounded in groups of columns, codes in the weight's own order, and its value.

    column_group: int64 [in], the group of each column, if groups are not runs of columns.
    """
    weight = tensor.to(torch.float32)
    if column_group is None:
        found = rounding.quantize(weight.contiguous(), scheme, None)
        return found, found.dequantize()
    order = torch.argsort(column_group, stable=True)
    found = rounding.quantize(weight[:, order].contiguous(), scheme, order)
    back = torch.argsort(order)
    value = found.dequantize()[:, back].contiguous()
    codes = found.codes[:, back].contiguous()
    return QuantizedTensor(found.scheme, codes, found.scale, found.zero_point), value


def cast_exactly(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A floating-point tensor in another dtype. Raises CheckpointError if a value becomes infinite."""
    found = tensor.to(dtype)
    if tensor.is_floating_point() and bool((found.isinf() & tensor.isfinite()).any()):
        raise CheckpointError(
            f"{name}: the reference holds {float(tensor.abs().max()):.3g}, beyond the candidate's "
            f"{str(dtype).removeprefix('torch.')}"
        )
    return found
