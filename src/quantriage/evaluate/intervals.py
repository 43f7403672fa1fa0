"""95% intervals by bootstrap over sequences: tokens of one sequence are not independent, sequences are.

Percentile bootstrap from scipy with a fixed seed. With a single sequence there is nothing to resample and
the interval is the point itself.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from quantriage.records.types import Comparison, EvalResult, Interval

RESAMPLES = 2000


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of per-sequence means with its interval."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2 or np.ptp(array) == 0:
        return Interval(value=mean, low=mean, high=mean)
    found = bootstrap(
        (array,), _mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return Interval(value=mean, low=float(found.low), high=float(found.high))


def perplexity_interval(nll: Sequence[float]) -> Interval:
    """exp of the mean negative log-likelihood; the interval's ends go through exp, which is monotone."""
    mean = mean_interval(nll)
    return Interval(value=math.exp(mean.value), low=math.exp(mean.low), high=math.exp(mean.high))


def compare(first: EvalResult, second: EvalResult) -> Comparison:
    """Paired difference in KL, first minus second: both saw the same sequences."""
    left, right = np.asarray(first.sequences.kl), np.asarray(second.sequences.kl)
    if left.shape != right.shape:
        raise ValueError(f"{first.label} has {len(left)} sequences, {second.label} {len(right)}")
    return Comparison(
        first=first.label, second=second.label, difference=mean_interval((left - right).tolist())
    )


def _mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.mean(values, axis=axis)
    return result
