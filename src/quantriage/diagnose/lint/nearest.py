"""What error a weight may be expected to have in its own scheme: plain rounding, or a table.

An error by itself says little: 12% is good at 4 bits and a disaster at 8. Every check against a reference
asks how much larger the error is than this.
"""

from dataclasses import replace

import torch
from torch import Tensor

from quantriage.diagnose.lint.grouping import SAMPLED_ROWS, even_rows, groups_of, is_integer
from quantriage.diagnose.lint.plain_grid import has_plain_grid, round_plainly, straddles
from quantriage.errors import BudgetError
from quantriage.numerics.min_max import min_max_qparams
from quantriage.numerics.rounding import fake_quantize
from quantriage.numerics.schemes import IntGrid, PerChannel, PerGroup, PerTensor, Scheme
from quantriage.numerics.stored_weight import StoredWeight

FLOAT_ERROR = 0.005  # bfloat16 keeps 8 bits: 0.002, twice rounded less than this
_FLOAT8_ERROR = 0.03  # three bits of mantissa
_TABLE_FACTOR = 1.9  # error of normal weights in block formats, 4.5 to 2 bits, over 2 ** -bits
_TABLE_MOST, _TABLE_LEAST = 0.75, 0.015


def expected_error(reference: Tensor, stored: StoredWeight | None) -> float:
    """Relative error of plain rounding of reference [out, in] as `stored` is stored."""
    if stored is None:
        return FLOAT_ERROR
    if stored.scheme is None and tuple(reference.shape) == stored.shape and has_plain_grid(stored):
        return _plain_error(reference, stored)
    scheme = _scheme(stored)
    if scheme is not None:
        rows = reference[even_rows(reference.shape[0])].to(torch.float32)
        if stored.column_group is not None:
            rows = rows[:, torch.argsort(stored.column_group.to(torch.int64), stable=True)]
        if isinstance(scheme.granularity, PerTensor):
            low, high = reference.aminmax()
            ends = torch.stack([low, high]).to(torch.float32).view(1, 2)
            qparams = min_max_qparams(ends, scheme)  # the range of all rows, not only of the sampled
        try:
            if not isinstance(scheme.granularity, PerTensor):
                qparams = min_max_qparams(rows, scheme)
            rounded = fake_quantize(rows, scheme, qparams)
        except BudgetError:
            return typical_error(stored)
        norm = float(rows.norm())
        return float((rounded - rows).norm()) / norm if norm > 0 else 0.0
    return typical_error(stored)


def _plain_error(reference: Tensor, stored: StoredWeight) -> float:
    """Of a grid without an integer scheme; whole, where its blocks straddle rows."""
    rows = (reference if straddles(stored) else reference[even_rows(reference.shape[0])]).to(torch.float32)
    norm = float(rows.norm())
    return float((round_plainly(rows, stored) - rows).norm()) / norm if norm > 0 else 0.0


def nearest_share(reference: Tensor, stored: StoredWeight) -> float | None:
    """Share of codes on sampled rows that are the nearest to reference [out, in] under the stored scales."""
    groups = groups_of(stored)
    if groups is None or groups.offset is not None or groups.points is not None:
        return None
    rows = even_rows(stored.shape[0], SAMPLED_ROWS // 2)
    scale = groups.scale[rows][:, groups.column_group]
    zero = groups.zero[rows][:, groups.column_group]
    wanted = (reference[rows].to(torch.float32) / scale).round_().add_(zero).clamp_(0, stored.levels - 1)
    return float((wanted == groups.codes[rows]).float().mean())


def _scheme(stored: StoredWeight) -> Scheme | None:
    """The scheme, made up for integer codes that have none: columns in another order, real minima."""
    if stored.scheme is not None:
        return replace(stored.scheme, scale_dtype="float32")
    groups = groups_of(stored)
    bits = (stored.levels - 1).bit_length()
    if groups is None or not is_integer(stored) or stored.levels != 1 << bits or not 2 <= bits <= 8:
        return None
    count = groups.scale.shape[1]
    granularity = PerChannel() if count == 1 else PerGroup(stored.shape[1] // count)
    return Scheme(IntGrid(bits, False), granularity, "float32")


def typical_error(stored: StoredWeight) -> float:
    """Relative error of normal weights at this many stored bits, for layouts that are not simulated."""
    bits = stored.bits_per_weight
    if stored.levels == 256 and stored.codes is not None and not is_integer(stored):
        return _FLOAT8_ERROR
    return min(_TABLE_MOST, max(_TABLE_LEAST, float(_TABLE_FACTOR * 2.0**-bits)))
