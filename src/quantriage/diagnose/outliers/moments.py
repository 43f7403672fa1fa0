"""Mean, variance and kurtosis of values that come in pieces, and two such sums made one.

Central moments are merged by the pairwise formulas of Chan, Golub and LeVeque (1979) and Pebay (2008,
SAND2008-6212, section 3), in float64. Sums of powers would be shorter and lose all digits where the mean is
large; scipy and numpy have no moments that merge.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_PIECE = 1 << 18  # values turned to float64 at once: 2 MB, which stays in the processor's cache


@dataclass
class Moments:
    """Count, mean and sums of the second to fourth power of the distance from it."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0

    def update(self, values: Tensor) -> None:
        """Add values of any shape. Memory: a few float64 pieces."""
        for part in values.reshape(-1).split(_PIECE):
            if part.numel():
                self.merge(_of(part.to(torch.float64)))

    def merge(self, other: "Moments") -> None:
        """Add other values' moments."""
        a, b = self.count, other.count
        if b == 0:
            return
        n = a + b
        d = other.mean - self.mean
        m2, m3 = self.m2, self.m3
        self.m4 += other.m4 + d**4 * a * b * (a * a - a * b + b * b) / n**3
        self.m4 += 6 * d * d * (a * a * other.m2 + b * b * m2) / n**2 + 4 * d * (a * other.m3 - b * m3) / n
        self.m3 += other.m3 + d**3 * a * b * (a - b) / n**2 + 3 * d * (a * other.m2 - b * m2) / n
        self.m2 += other.m2 + d * d * a * b / n
        self.mean += d * b / n
        self.count = n

    @property
    def std(self) -> float:
        """Standard deviation of the population; 0 of nothing."""
        return float((self.m2 / self.count) ** 0.5) if self.count else 0.0

    @property
    def kurtosis(self) -> float:
        """Excess kurtosis: 0 for a Gaussian, and for values that are all alike."""
        return self.count * self.m4 / self.m2**2 - 3 if self.m2 > 0 else 0.0


def _of(values: Tensor) -> Moments:
    mean = values.mean()
    distance = values - mean
    square = distance * distance
    return Moments(
        count=values.numel(),
        mean=float(mean),
        m2=float(square.sum()),
        m3=float((square * distance).sum()),
        m4=float((square * square).sum()),
    )
