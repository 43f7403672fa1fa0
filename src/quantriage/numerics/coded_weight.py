"""A weight as codes on an integer or a float grid, with scales in any of the layouts that checkpoints use.

`QuantizedTensor` is what methods make and writers store: integers in contiguous groups. Checkpoints of others
also hold floats, square blocks and columns whose groups are scattered; all of them dequantize by one rule,
(value of the code - zero point) * scale, in float32. One rule and one place to spread the scales was chosen
over a product in every reader, where each would have its own way to handle a last block that is not full.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.numerics.float_grids import FloatGrid
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import SCALE_BITS, Granularity, IntGrid, PerGroup, PerTensor, Scheme
from quantriage.numerics.stored_weight import StoredWeight


@dataclass(frozen=True)
class PerBlock:
    """One scale for each block of `rows` x `columns`; the last of a row or column may be cut short."""

    rows: int
    columns: int


ScaleLayout = Granularity | PerBlock


def scale_shape(layout: ScaleLayout, shape: tuple[int, int]) -> tuple[int, int]:
    """Scales [down, across] for a weight [out, in]. Raises ValueError if groups do not divide the rows."""
    rows, columns = shape
    match layout:
        case PerTensor():
            return 1, 1
        case PerBlock(height, width):
            return -(-rows // height), -(-columns // width)
        case PerGroup(size):
            if columns % size:
                raise ValueError(f"in_features {columns} is not a multiple of group size {size}")
            return rows, columns // size
    return rows, 1


@dataclass(frozen=True)
class CodedWeight:
    """A weight of logical shape [out, in].

    codes: uint8 [out, in], 0 .. grid.levels - 1.
    scale: effective scales, float32, of `scale_shape(layout, shape)`.
    scale_dtype: torch's name of the dtype in which scales are stored.
    zero_point: uint8 codes of zero in scale's shape; None on a symmetric or a float grid.
    column_group: int64 [in], the group of each column, where groups are not runs of columns; else None.
    """

    grid: IntGrid | FloatGrid
    layout: ScaleLayout
    codes: Tensor
    scale: Tensor
    scale_dtype: str
    zero_point: Tensor | None = None
    column_group: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape (out, in)."""
        rows, columns = self.codes.shape
        return rows, columns

    def dequantize(self) -> Tensor:
        """(value - zero point) * scale in float32 [out, in], each product rounded once.

        Exact where code and scale have at most 24 significant bits together, so for every scale of 16 bits.
        Peak memory: the result, and once more as much where blocks are cut short or columns scattered.
        """
        if isinstance(self.grid, FloatGrid):
            values = self.grid.decode(self.codes)
        else:
            values = self.codes.to(torch.float32)
            if self.zero_point is None:
                values -= self.grid.center
            else:
                view, zero = self._aligned(values, self.zero_point.to(torch.float32))
                view -= zero
        view, scale = self._aligned(values, self.scale)
        view *= scale
        return values

    def stored(self, layout: str, nbytes: int) -> StoredWeight:
        """The record of this weight; `layout` is its format's word, `nbytes` all that is stored for it."""
        return StoredWeight(
            layout=layout,
            shape=self.shape,
            levels=self.grid.levels,
            nbytes=nbytes,
            codes=self.codes,
            scale=self.scale,
            scale_dtype=self.scale_dtype,
            zero_point=self.zero_point,
            column_group=self.column_group,
            scheme=self._scheme(),
        )

    def _scheme(self) -> Scheme | None:
        """The integer scheme, if one says it all."""
        if isinstance(self.grid, FloatGrid) or isinstance(self.layout, PerBlock):
            return None
        found = [dtype for dtype in SCALE_BITS if dtype == self.scale_dtype]
        if self.column_group is not None or not found:
            return None
        return Scheme(self.grid, self.layout, found[0])

    def _aligned(self, values: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
        """A view of `values` [out, in], and `parts`, one for each scale, in a shape that broadcasts to it."""
        rows, columns = values.shape
        across = parts.shape[1]
        if isinstance(self.layout, PerBlock):
            parts = parts[torch.arange(rows) // min(self.layout.rows, rows)]  # [out, across]
        if self.column_group is not None:
            return values, parts[:, self.column_group]
        if isinstance(self.layout, PerBlock) and across > 1 and columns % self.layout.columns:
            return values, parts[:, torch.arange(columns) // self.layout.columns]
        return values.view(rows, across, columns // across), parts.unsqueeze(-1)


def coded(weight: QuantizedTensor, column_group: Tensor | None = None) -> CodedWeight:
    """An integer weight in contiguous groups, or with the group of each column."""
    return CodedWeight(
        grid=weight.scheme.grid,
        layout=weight.scheme.granularity,
        codes=weight.codes,
        scale=weight.scale.to(torch.float32),
        scale_dtype=str(weight.scale.dtype).removeprefix("torch."),
        zero_point=weight.zero_point,
        column_group=column_group,
    )
