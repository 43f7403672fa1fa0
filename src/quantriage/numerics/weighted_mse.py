"""Scales with the least squared error when each input counts by its importance.

With the Hessian's diagonal as importance this is the layer's output error under uncorrelated inputs;
with the pivots of its factor, the error left after GPTQ's compensation. The search does not ask which of
the two it was given. More steps were rejected: 96 take about 1% off the weighted error of 24, and four
times as long.
"""

from dataclasses import dataclass

from torch import Tensor

from quantriage.numerics.qparams import QParams
from quantriage.numerics.schemes import Scheme
from quantriage.numerics.shrink_search import shrink_search


@dataclass(frozen=True, eq=False)
class WeightedMse:
    """Column importances [in], not negative, and the same steps as `Mse`."""

    weights: Tensor
    steps: int = 24
    smallest: float = 0.3


def weighted_mse_qparams(weight: Tensor, scheme: Scheme, search: WeightedMse) -> QParams:
    """Scales of weight [out, in] with the least importance-weighted squared error in each group."""
    assert search.weights.shape == (weight.shape[1],)
    return shrink_search(weight, scheme, search.weights, search.steps, search.smallest)
