"""Scales from the largest magnitude of each group: the range is made symmetric around zero.

Cheap and exact at both ends of a group, blind to everything between. On an asymmetric grid it wastes the
side that a group does not use, which is why `MinMax` is the usual choice there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.numerics.qparams import QParams, group_ranges, scale_and_zero, stored
from quantriage.numerics.schemes import Scheme


@dataclass(frozen=True)
class AbsMax:
    """Range -m .. m of each group, m its largest magnitude."""


def absmax_qparams(weight: Tensor, scheme: Scheme) -> QParams:
    """Scales of weight [out, in] so that no value is clipped on either side."""
    low, high = group_ranges(weight, scheme)
    magnitude = torch.maximum(low.abs(), high.abs())
    return stored(*scale_and_zero(-magnitude, magnitude, scheme), scheme)
