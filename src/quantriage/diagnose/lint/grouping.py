"""Which scale and which zero stand for which weight: a stored weight spread to [out, groups].

Formats keep scales in shapes of their own. Checks that ask about single groups need them as a table; where a
format's shape cannot be laid out so (super-blocks, double quantization), those checks do not run.
"""

from dataclasses import dataclass, replace
from math import gcd

import torch
from torch import Tensor

from quantriage.numerics.stored_weight import StoredWeight

SAMPLED_ROWS = 128  # rows are alike; so many give a share to within a few percent
_NARROWEST = 8  # columns: a block that straddles rows is cut into pieces that do not, if not too small


@dataclass(frozen=True)
class Groups:
    """Scales and zeros of a weight [out, in] whose value is (code - zero) * scale + offset.

    scale, zero, offset: float32 [out, groups]; column_group: int64 [in]. points: float32 [levels], in place
    of code - zero where codes count no equal steps; zero is 0 then.
    """

    codes: Tensor  # [out, in]
    scale: Tensor
    zero: Tensor
    offset: Tensor | None
    column_group: Tensor
    points: Tensor | None = None

    def moved(self, shift: int) -> "Groups":
        """With the scales of the group `shift` further on where groups of all rows are one run."""

        def roll(table: Tensor) -> Tensor:
            return table.reshape(-1).roll(-shift).view(table.shape)

        offset = None if self.offset is None else roll(self.offset)
        return replace(self, scale=roll(self.scale), zero=roll(self.zero), offset=offset)

    def values(self, rows: Tensor, shift: int = 0, column_group: Tensor | None = None) -> Tensor:
        """Weights of some rows, float32 [rows, in]; with scales of the group `shift` further on, if given."""
        index = self.column_group if column_group is None else column_group
        index = (index + shift) % self.scale.shape[1]
        scale = self.scale[rows][:, index]
        if self.points is not None:
            value = self.points[self.codes[rows].to(torch.int64)] * scale
        else:
            value = (self.codes[rows].to(torch.float32) - self.zero[rows][:, index]) * scale
        return value if self.offset is None else value + self.offset[rows][:, index]


def groups_of(stored: StoredWeight) -> Groups | None:
    """The table, or None where the format's scales have another shape or codes stand for nothing known."""
    codes, scale, points = stored.codes, stored.scale, stored.points
    if codes is None or scale is None or scale.ndim > 2 or not (is_integer(stored) or points is not None):
        return None
    rows, columns = stored.shape
    table = _table(scale, rows) if points is None else _flat_table(scale, rows, columns)
    if table is None or columns % table.shape[1]:
        return None
    count = table.shape[1]
    if stored.column_group is not None:
        index = stored.column_group.to(torch.int64)
        if tuple(index.shape) != (columns,) or not bool(((index >= 0) & (index < count)).all()):
            return None
    else:
        index = torch.arange(columns) // (columns // count)
    zero = _zero(stored, rows, count) if points is None else torch.zeros(rows, count)
    offset = None if stored.offset is None else _table(stored.offset.to(torch.float32), rows)
    if zero is None or (stored.offset is not None and (offset is None or offset.shape[1] != count)):
        return None
    return Groups(codes, table, zero, offset, index, points)


def is_integer(stored: StoredWeight) -> bool:
    """Whether codes count steps of equal size, so that the ends of the codes are the ends of the values."""
    parts = (stored.scheme, stored.zero_point, stored.offset, stored.column_group)
    return any(part is not None for part in parts)


def even_rows(count: int, wanted: int = SAMPLED_ROWS) -> Tensor:
    """Indices of at most `wanted` rows, evenly spread, int64."""
    if count <= wanted:
        return torch.arange(count)
    return torch.linspace(0, count - 1, wanted).to(torch.int64)


def _table(values: Tensor, rows: int) -> Tensor | None:
    """[out, groups] from a scalar, one for each row, [1, groups] or [out, groups]."""
    if values.numel() == 1:
        return values.reshape(1, 1).expand(rows, 1)
    if values.ndim == 1 and values.shape[0] == rows:
        return values.unsqueeze(1)
    if values.ndim == 2 and values.shape[0] in (1, rows):
        return values.expand(rows, -1)
    return None


def _flat_table(values: Tensor, rows: int, columns: int) -> Tensor | None:
    """[out, groups] from scales of blocks that run over the flattened weight, as bitsandbytes lays them.

    A block that straddles rows is cut where a row ends: its pieces carry the same scale.
    """
    count = rows * columns
    if values.ndim != 1 or values.shape[0] in (1, rows) or count % values.shape[0]:
        return _table(values, rows)
    width = count // values.shape[0]
    piece = gcd(width, columns)
    if piece < _NARROWEST:
        return None
    return values.repeat_interleave(width // piece).view(rows, columns // piece)


def _zero(stored: StoredWeight, rows: int, count: int) -> Tensor | None:
    """Codes of zero [out, groups], float32: 0 beside an offset, else stored, or a symmetric grid's centre.

    HQQ's reader gives both where its zeros are integers: two forms of one number.
    """
    if stored.offset is not None:
        return torch.zeros(rows, count)
    if stored.zero_point is not None:
        found = _table(stored.zero_point.to(torch.float32), rows)
        return found if found is not None and found.shape[1] == count else None
    return torch.full((rows, count), float(stored.levels // 2))
