"""Statistics of one weight in two passes over its rows: what it is like, then what lies far out.

Both passes are sums over rows, so rows may be split anywhere and the parts merged. Two passes because `k
sigma` needs sigma; a weight can be read twice, unlike an activation.
"""

import torch
from torch import Tensor

from quantriage.diagnose.outliers.magnitude_bins import MagnitudeBins
from quantriage.diagnose.outliers.moments import Moments
from quantriage.records.outliers import OUTLIER_SIGMA, RANGE_SIGMA

SIGMAS = (3.0, 4.0, 6.0)


class WeightSum:
    """First pass: moments, extremes and magnitudes."""

    def __init__(self) -> None:
        self.moments, self.bins = Moments(), MagnitudeBins()
        self.low, self.high = float("inf"), float("-inf")

    def update(self, rows: Tensor) -> None:
        """Add rows [n, in], n > 0."""
        self.moments.update(rows)
        self.bins.update(rows)
        low, high = rows.aminmax()
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def merge(self, other: "WeightSum") -> None:
        """Add other rows."""
        self.moments.merge(other.moments)
        self.bins.merge(other.bins)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


class TailSum:
    """Second pass: what lies beyond so many sigma, the range of the rest, and who carries the outliers."""

    def __init__(self, mean: float, std: float, shape: tuple[int, int]) -> None:
        self.mean, self.std = mean, std
        self.beyond = dict.fromkeys(SIGMAS, 0)
        self.low, self.high = float("inf"), float("-inf")  # within RANGE_SIGMA
        rows, columns = shape
        self.row_outliers = torch.zeros(rows, dtype=torch.int64)
        self.column_outliers = torch.zeros(columns, dtype=torch.int64)
        self.row_largest = torch.zeros(rows, dtype=torch.float64)  # distance from the mean, in weights' units
        self.column_largest = torch.zeros(columns, dtype=torch.float64)

    def update(self, rows: Tensor, first: int) -> None:
        """Add rows [n, in], of which the first is row `first`. Memory: three float64 copies of them."""
        values = rows.to(torch.float64)
        distance = (values - self.mean).abs_()
        for sigma in SIGMAS:
            self.beyond[sigma] += int((distance > sigma * self.std).sum())
        within = distance <= RANGE_SIGMA * self.std
        if bool(within.any()):
            inner = values[within]
            self.low = min(self.low, float(inner.min()))
            self.high = max(self.high, float(inner.max()))
        outliers = distance > OUTLIER_SIGMA * self.std
        self.row_outliers[first : first + len(rows)] += outliers.sum(dim=1).cpu()
        self.column_outliers += outliers.sum(dim=0).cpu()
        self.row_largest[first : first + len(rows)] = distance.amax(dim=1).cpu()
        self.column_largest = torch.maximum(self.column_largest, distance.amax(dim=0).cpu())

    def merge(self, other: "TailSum") -> None:
        """Add a sum over other rows, with the same mean and sigma."""
        for sigma in SIGMAS:
            self.beyond[sigma] += other.beyond[sigma]
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.row_outliers += other.row_outliers
        self.column_outliers += other.column_outliers
        self.row_largest = torch.maximum(self.row_largest, other.row_largest)
        self.column_largest = torch.maximum(self.column_largest, other.column_largest)
