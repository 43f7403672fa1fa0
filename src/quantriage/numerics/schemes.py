"""Integer quantization schemes as plain data: a grid, a granularity, and what is stored beside the codes.

A scheme says how one weight [out, in] is stored; it knows nothing of files, modules or methods. Wrong
states cannot be written: `PerGroup(64)` instead of a strategy string beside an optional number. Codes
are unsigned, 0 .. 2**bits - 1; a symmetric grid has the fixed zero point 2**(bits-1) and stores none, so
value = (code - zero_point) * scale in both cases, as in GPTQ, AWQ and compressed-tensors.
"""

import re
from dataclasses import dataclass
from typing import Literal

from quantriage.errors import BudgetError

ScaleDtype = Literal["float16", "bfloat16", "float32"]
SCALE_BITS: dict[ScaleDtype, int] = {"float16": 16, "bfloat16": 16, "float32": 32}


@dataclass(frozen=True)
class IntGrid:
    """Integer codes of `bits` bits (2 to 8); `symmetric` grids have no stored zero point."""

    bits: int
    symmetric: bool

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise BudgetError(f"integer grid of {self.bits} bits: expected 2 to 8")

    @property
    def levels(self) -> int:
        """Number of codes."""
        return 1 << self.bits

    @property
    def center(self) -> int:
        """The zero point of the symmetric grid."""
        return 1 << (self.bits - 1)


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole weight."""


@dataclass(frozen=True)
class PerChannel:
    """One scale for each output row."""


@dataclass(frozen=True)
class PerGroup:
    """One scale for each run of `size` consecutive inputs of a row."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise BudgetError(f"group size {self.size}: expected a positive number")


Granularity = PerTensor | PerChannel | PerGroup


@dataclass(frozen=True)
class Scheme:
    """How one weight is stored. `str(scheme)` and `Scheme.parse` are inverse: `w4a-g64`, `w8s-channel`."""

    grid: IntGrid
    granularity: Granularity
    scale_dtype: ScaleDtype = "float16"

    def __str__(self) -> str:
        match self.granularity:
            case PerTensor():
                where = "tensor"
            case PerChannel():
                where = "channel"
            case PerGroup(size):
                where = f"g{size}"
        return f"w{self.grid.bits}{'s' if self.grid.symmetric else 'a'}-{where}"

    @staticmethod
    def parse(text: str, scale_dtype: ScaleDtype = "float16") -> "Scheme":
        """Read `w<bits><s|a>-<tensor|channel|g<size>>`; raises BudgetError on anything else."""
        found = re.fullmatch(r"w([2-8])([sa])-(tensor|channel|g([1-9]\d{0,5}))", text)
        if found is None:
            raise BudgetError(f"scheme {text!r}: expected for example w4a-g64, w8s-channel or w4s-tensor")
        bits, kind, where, size = found.groups()
        granularity: Granularity
        if where == "tensor":
            granularity = PerTensor()
        elif where == "channel":
            granularity = PerChannel()
        else:
            granularity = PerGroup(int(size))
        return Scheme(IntGrid(int(bits), kind == "s"), granularity, scale_dtype)

    def group_width(self, in_features: int) -> int:
        """Inputs that share one scale within a row. Raises BudgetError if a group does not divide the row."""
        if not isinstance(self.granularity, PerGroup):
            return in_features
        size = self.granularity.size
        if in_features % size:
            fits = [s for s in (16, 32, 64, 96, 128, 256) if in_features % s == 0]
            choices = ", ".join(map(str, fits)) or "none of the usual sizes"
            raise BudgetError(
                f"in_features {in_features} is not a multiple of group size {size}; "
                f"sizes that divide it: {choices}; or quantize per channel"
            )
        return size

    def scale_count(self, shape: tuple[int, int]) -> int:
        """Number of scales stored for a weight of `shape` [out, in]."""
        rows, columns = shape
        if isinstance(self.granularity, PerTensor):
            return 1
        return rows * (columns // self.group_width(columns))

    def stored_bits(self, shape: tuple[int, int]) -> int:
        """Bits of codes, scales and zero points for a weight of `shape` [out, in], without padding."""
        rows, columns = shape
        scales = self.scale_count(shape)
        zero_points = 0 if self.grid.symmetric else scales * self.grid.bits
        return rows * columns * self.grid.bits + scales * SCALE_BITS[self.scale_dtype] + zero_points
