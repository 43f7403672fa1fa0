"""What rounds of a speed measurement say: rates with intervals, and ratios paired by round.

Times are positive and disturbances multiply them, so means are geometric and intervals are Student's t on
the logarithms, which stays honest with the few rounds that one has; a percentile bootstrap of eight rounds is
too narrow. Ratios pair the rounds: what slows the machine for a while slows both sides of a pair.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from quantriage.records.bench import BenchRound, Outcome
from quantriage.records.types import Interval

CONFIDENCE = 0.95
_LEAST_CHANGE = 0.02  # of a ratio: less matters to nobody, and clocks and memory layout move that much


def geometric(values: Sequence[float]) -> Interval:
    """Geometric mean of positive values with its 95% interval; the point alone for a single one."""
    logs = np.log(np.asarray(values, dtype=np.float64))
    mean = float(logs.mean())
    half = _half_width(logs)
    return Interval(
        value=float(np.exp(mean)), low=float(np.exp(mean - half)), high=float(np.exp(mean + half))
    )


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> Interval:
    """Geometric mean of above / below, round by round."""
    if len(above) != len(below):
        raise ValueError(f"{len(above)} rounds against {len(below)}: they do not pair")
    return geometric([a / b for a, b in zip(above, below, strict=True)])


def prefill_rates(rounds: Sequence[BenchRound], prompt: int) -> list[float]:
    """Prompt tokens per second until the first new token."""
    return [prompt / one.first for one in rounds]


def decode_rates(rounds: Sequence[BenchRound], new: int) -> list[float]:
    """New tokens per second after the first one."""
    return [new / (one.total - one.first) for one in rounds]


def outcome(ratio: Interval) -> Outcome:
    """Faster or slower only if the whole interval says so, and by more than is worth a word."""
    if ratio.low > 1 and ratio.value > 1 + _LEAST_CHANGE:
        return "faster"
    if ratio.high < 1 and ratio.value < 1 - _LEAST_CHANGE:
        return "slower"
    return "not told apart"


def _half_width(logs: NDArray[np.float64]) -> float:
    if len(logs) < 2:
        return 0.0
    quantile = float(t.ppf(0.5 + CONFIDENCE / 2, len(logs) - 1))
    return quantile * float(logs.std(ddof=1)) / float(np.sqrt(len(logs)))
