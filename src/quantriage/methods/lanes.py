"""Grids of many rows, sites and schemes side by side, so that one operation rounds a column of them all.

A lane is one row of one weight under one scheme. Weights lie transposed, [in, lanes]: a column of the
weight is then one contiguous row of memory, and schemes with different widths, groups and zero points differ
only in the values of four tables. Looping over schemes instead repeats the small operations, whose launch
costs more than their arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from quantriage.formats.gguf_search import Points
from quantriage.numerics.qparams import QParams, float_zero_point
from quantriage.numerics.schemes import Scheme


@dataclass(frozen=True)
class LaneGrid:
    """Rounding tables, float32 [in / width, lanes]; `width` divides every scheme's group.

    A value v has the centred code clamp(round(v * inverse), low, high) = code - zero point, or the nearest of
    `points` to v * inverse where codes stand for uneven steps.
    """

    width: int
    scale: Tensor
    inverse: Tensor
    low: Tensor
    high: Tensor
    points: Points | None = None

    def rows(self, start: int, stop: int, schemes: int) -> "LaneGrid":
        """The same for rows start .. stop of each of `schemes` equal runs of lanes."""
        tables = (self.scale, self.inverse, self.low, self.high)
        groups = self.scale.shape[0]
        scale, inverse, low, high = (
            table.view(groups, schemes, -1)[:, :, start:stop].reshape(groups, -1) for table in tables
        )
        return LaneGrid(self.width, scale, inverse, low, high)

    def schemes(self, chosen: Sequence[int], schemes: int, width: int) -> "LaneGrid":
        """The lanes of some of `schemes` equal runs, all in groups of `width`, one table row for each."""
        repeat, groups = width // self.width, self.scale.shape[0]
        tables = (self.scale, self.inverse, self.low, self.high)
        scale, inverse, low, high = (
            table.view(groups, schemes, -1)[::repeat, list(chosen)].flatten(1) for table in tables
        )
        return LaneGrid(width, scale, inverse, low, high)

    def unsigned(self, centred: Tensor) -> Tensor:
        """Centred codes [in, lanes] as stored: counted from zero, uint8."""
        grouped = centred.view(-1, self.width, centred.shape[1])
        return (grouped - self.low.unsqueeze(1)).to(torch.uint8).view(centred.shape)


def lane_grid(
    columns: int, schemes: Sequence[Scheme], qparams: Sequence[Sequence[QParams]], rows: Sequence[int]
) -> LaneGrid:
    """Tables for the lanes of qparams[scheme][site], sites of rows[site] rows, scheme after scheme."""
    width = 0
    for scheme in schemes:
        width = gcd(width, scheme.group_width(columns))
    scales, lows, highs = [], [], []
    for scheme, of_sites in zip(schemes, qparams, strict=True):
        for found, count in zip(of_sites, rows, strict=True):
            scale = found.scale.to(torch.float32)
            zero = float_zero_point(scale, found.zero_point, scheme.grid)
            repeat = columns // width // scale.shape[1]
            scales.append(_table(scale, repeat, count))
            lows.append(-_table(zero, repeat, count))
            highs.append(scheme.grid.levels - 1 + lows[-1])
    scale = torch.cat(scales, 1)
    return LaneGrid(width, scale, scale.reciprocal(), torch.cat(lows, 1), torch.cat(highs, 1))


def round_to_codes(values: Tensor, low: Tensor, high: Tensor, points: Points | None) -> None:
    """Values in units of their scale to centred codes, in place."""
    if points is not None:
        values.copy_(points.nearest(values))
        return
    values.round_()
    torch.clamp(values, low, high, out=values)


def _table(values: Tensor, repeat: int, rows: int) -> Tensor:
    """Values [out or 1, groups] as [groups * repeat, rows]."""
    return values.expand(rows, -1).T.repeat_interleave(repeat, 0)
