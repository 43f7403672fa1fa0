"""Scales with the least squared rounding error, all inputs weighed alike: needs no calibration data."""

from dataclasses import dataclass

from torch import Tensor

from quantriage.numerics.qparams import QParams
from quantriage.numerics.schemes import Scheme
from quantriage.numerics.shrink_search import shrink_search


@dataclass(frozen=True)
class Mse:
    """Try `steps` shrunken ranges from the full one down to `smallest` of it."""

    steps: int = 24
    smallest: float = 0.3


def mse_qparams(weight: Tensor, scheme: Scheme, search: Mse) -> QParams:
    """Scales of weight [out, in] with the least sum of squared errors in each group."""
    return shrink_search(weight, scheme, None, search.steps, search.smallest)
