"""Statistics of what a site reads, batch by batch: the activation itself is never kept.

One pass is enough because "stands out" is judged at each token against that token's own mean magnitude, not
against a figure of the whole set that only a second pass would know. A whole run keeps a few numbers for each
channel and four for each token; from those the massive tokens are found exactly at the end.
"""

import torch
from torch import Tensor

from quantriage.diagnose.outliers.magnitude_bins import MagnitudeBins
from quantriage.diagnose.outliers.moments import Moments
from quantriage.records.outliers import STANDS_OUT

UNKNOWN = -1


class InputSum:
    """Sums over the rows [n, width] of one input. Memory: 12 bytes a channel, 20 a token, one batch."""

    def __init__(self, width: int) -> None:
        self.moments, self.bins = Moments(), MagnitudeBins()
        self.magnitude = 0.0  # sum
        self.channel_maximum = torch.zeros(width)
        self.channel_stands_out = torch.zeros(width, dtype=torch.int64)  # tokens
        self._peaks: list[Tensor] = []  # float32 [n]: largest magnitude of each token
        self._means: list[Tensor] = []  # float32 [n]: mean magnitude of each token
        self._channels: list[Tensor] = []  # int32 [n]: the channel of the peak
        self._places: list[Tensor] = []  # int64 [n]: index in the token set, or UNKNOWN

    def update(self, rows: Tensor, places: Tensor | None) -> None:
        """Add rows [n, width]; `places` [n] are their indices in the flattened token set, None if unknown."""
        if not len(rows):
            return
        self.moments.update(rows)
        self.bins.update(rows)
        magnitudes = rows.to(torch.float32).abs()
        means = magnitudes.mean(dim=1)
        peaks, channels = magnitudes.max(dim=1)
        self.magnitude += float(magnitudes.sum(dtype=torch.float64))
        self.channel_maximum = torch.maximum(self.channel_maximum, magnitudes.amax(dim=0).cpu())
        self.channel_stands_out += (magnitudes > STANDS_OUT * means.unsqueeze(1)).sum(dim=0).cpu()
        self._peaks.append(peaks.cpu())
        self._means.append(means.cpu())
        self._channels.append(channels.to(torch.int32).cpu())
        self._places.append(torch.full((len(rows),), UNKNOWN) if places is None else places)

    def merge(self, other: "InputSum") -> None:
        """Add a sum over other tokens."""
        self.moments.merge(other.moments)
        self.bins.merge(other.bins)
        self.magnitude += other.magnitude
        self.channel_maximum = torch.maximum(self.channel_maximum, other.channel_maximum)
        self.channel_stands_out += other.channel_stands_out
        self._peaks += other._peaks
        self._means += other._means
        self._channels += other._channels
        self._places += other._places

    @property
    def width(self) -> int:
        """Channels."""
        return len(self.channel_maximum)

    @property
    def tokens(self) -> int:
        """Rows seen."""
        return self.moments.count // self.width

    @property
    def mean_magnitude(self) -> float:
        """Mean of |x|; 0 of nothing."""
        return self.magnitude / self.moments.count if self.moments.count else 0.0

    def peaks(self) -> Tensor:
        """Largest magnitude of each token, float32 [tokens], in the order seen."""
        return torch.cat(self._peaks)

    def peak_channels(self) -> Tensor:
        """The channel of each token's peak, int32 [tokens]."""
        return torch.cat(self._channels)

    def places(self) -> Tensor:
        """Index of each token in the flattened token set, int64 [tokens]."""
        return torch.cat(self._places)

    def typical_ratio(self) -> float:
        """Median over tokens of peak over mean magnitude; tokens that are all zero do not count."""
        means = torch.cat(self._means)
        ratios = torch.cat(self._peaks)[means > 0] / means[means > 0]
        return float(ratios.median()) if len(ratios) else 0.0
