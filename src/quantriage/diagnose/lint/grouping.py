"""Which scale and which zero stand for which weight: a stored weight spread to [out, groups].

Formats keep scales in shapes of their own. Checks that ask about single groups need them as a table; where a
format's shape cannot be laid out so (super-blocks, double quantization), those checks do not run.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.numerics.stored_weight import StoredWeight

SAMPLED_ROWS = 128  # rows are alike; so many give a share to within a few percent


@dataclass(frozen=True)
class Groups:
    """Scales and zeros of a weight [out, in] whose value is (code - zero) * scale + offset.

    scale, zero, offset: float32 [out, groups]; column_group: int64 [in].
    """

    codes: Tensor  # [out, in]
    scale: Tensor
    zero: Tensor
    offset: Tensor | None
    column_group: Tensor

    def values(self, rows: Tensor, shift: int = 0, column_group: Tensor | None = None) -> Tensor:
        """Weights of some rows, float32 [rows, in]; with scales of the group `shift` further on, if given."""
        index = self.column_group if column_group is None else column_group
        index = (index + shift) % self.scale.shape[1]
        scale = self.scale[rows][:, index]
        value = (self.codes[rows].to(torch.float32) - self.zero[rows][:, index]) * scale
        return value if self.offset is None else value + self.offset[rows][:, index]


def groups_of(stored: StoredWeight) -> Groups | None:
    """The table, or None where the format's scales have another shape or codes are no integers."""
    codes, scale = stored.codes, stored.scale
    if codes is None or scale is None or scale.ndim > 2 or not is_integer(stored):
        return None
    rows, columns = stored.shape
    table = _table(scale, rows)
    if table is None or columns % table.shape[1]:
        return None
    count = table.shape[1]
    if stored.column_group is not None:
        index = stored.column_group.to(torch.int64)
        if tuple(index.shape) != (columns,) or not bool(((index >= 0) & (index < count)).all()):
            return None
    else:
        index = torch.arange(columns) // (columns // count)
    zero = _zero(stored, rows, count)
    offset = None if stored.offset is None else _table(stored.offset.to(torch.float32), rows)
    if zero is None or (stored.offset is not None and (offset is None or offset.shape[1] != count)):
        return None
    return Groups(codes, table, zero, offset, index)


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


def _zero(stored: StoredWeight, rows: int, count: int) -> Tensor | None:
    """Codes of zero [out, groups], float32: stored, a symmetric grid's centre, or 0 beside an offset."""
    if stored.zero_point is not None:
        found = _table(stored.zero_point.to(torch.float32), rows)
        return found if found is not None and found.shape[1] == count else None
    if stored.offset is not None:
        return torch.zeros(rows, count)
    return torch.full((rows, count), float(stored.levels // 2))
