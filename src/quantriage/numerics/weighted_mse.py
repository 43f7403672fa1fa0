"""Scales with the least squared error when each input counts by its importance.

With the Hessian's diagonal as importance this is the layer's output error under uncorrelated inputs. It is
what took W4 from KL 0.295 to 0.107 together with act-order on the model this project was tuned on. The
full Hessian of a group was tried instead of its diagonal and is not worth its time (see `methods.gptq`).
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
