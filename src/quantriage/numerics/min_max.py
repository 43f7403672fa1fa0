"""Scales from the smallest and the largest value of each group: the field's plain baseline.

On a symmetric grid this is the smallest scale that clips neither end; it differs from `AbsMax` in that a
group whose largest magnitude is negative uses the extra negative code.
"""

from dataclasses import dataclass

from torch import Tensor

from quantriage.numerics.qparams import QParams, group_ranges, scale_and_zero, stored
from quantriage.numerics.schemes import Scheme


@dataclass(frozen=True)
class MinMax:
    """Range min .. max of each group, widened to hold zero."""


def min_max_qparams(weight: Tensor, scheme: Scheme) -> QParams:
    """Scales of weight [out, in] that clip nothing."""
    low, high = group_ranges(weight, scheme)
    return stored(*scale_and_zero(low, high, scheme), scheme)
