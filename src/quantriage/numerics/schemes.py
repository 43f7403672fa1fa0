"""Quantization schemes as plain data: a grid, a granularity, and what is stored beside the codes.

A scheme says how one weight [out, in] is stored; it knows nothing of files, modules or methods. Wrong
states cannot be written: `PerGroup(64)` instead of a strategy string beside an optional number. Codes
are unsigned, 0 .. 2**bits - 1; a symmetric grid has the fixed zero point 2**(bits-1) and stores none, so
value = (code - zero_point) * scale in both cases, as in GPTQ, AWQ and compressed-tensors.

A scheme may name a GGUF block type instead (`InBlocks`): scales, minima and codes are then what that type
stores, and the grid says no more than how many bits a code has and whether there are minima. A class of its
own beside Scheme was rejected: plans, budgets and banks ask a scheme for its name and its bytes only.
"""

import re
from dataclasses import dataclass
from typing import Literal

from quantriage.errors import BudgetError
from quantriage.numerics.block_types import BLOCK_TYPES, BlockType, bytes_of

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


@dataclass(frozen=True)
class InBlocks:
    """Two levels of scales, or one, as the GGUF block type `kind` has them."""

    kind: str


Granularity = PerTensor | PerChannel | PerGroup | InBlocks


@dataclass(frozen=True)
class Scheme:
    """How one weight is stored. `str(scheme)` and `Scheme.parse` are inverse: `w4a-g64`, `w8s-channel`."""

    grid: IntGrid
    granularity: Granularity
    scale_dtype: ScaleDtype = "float16"

    def __post_init__(self) -> None:
        if isinstance(self.granularity, InBlocks):
            block = BLOCK_TYPES[self.granularity.kind]
            assert (self.grid, self.scale_dtype) == (IntGrid(block.bits, not block.offset), "float16")

    def __str__(self) -> str:
        match self.granularity:
            case InBlocks(kind):
                return kind
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

    @staticmethod
    def named(text: str, scale_dtype: ScaleDtype = "float16") -> "Scheme":
        """`parse`, or the GGUF block type of that name, such as Q4_K."""
        if text not in BLOCK_TYPES:
            return Scheme.parse(text, scale_dtype)
        block = BLOCK_TYPES[text]
        return Scheme(IntGrid(block.bits, not block.offset), InBlocks(text))

    @property
    def in_blocks(self) -> bool:
        """Whether it names a GGUF block type."""
        return isinstance(self.granularity, InBlocks)

    @property
    def block(self) -> BlockType:
        """The block type of a scheme that names one."""
        assert isinstance(self.granularity, InBlocks)
        return BLOCK_TYPES[self.granularity.kind]

    def group_width(self, in_features: int) -> int:
        """Inputs that share one scale within a row. Raises BudgetError if a group does not divide the row."""
        if isinstance(self.granularity, InBlocks):
            if in_features % self.block.width:
                raise BudgetError(
                    f"in_features {in_features} is not a multiple of {self.block.width}, the weights in a "
                    f"block of {self}"
                )
            return self.block.sub
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
        if isinstance(self.granularity, InBlocks):
            return 8 * bytes_of(self.granularity.kind, rows * columns)
        zero_points = 0 if self.grid.symmetric else scales * self.grid.bits
        return rows * columns * self.grid.bits + scales * SCALE_BITS[self.scale_dtype] + zero_points
