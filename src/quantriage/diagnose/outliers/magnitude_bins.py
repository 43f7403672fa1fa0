"""A histogram of magnitudes whose bins never depend on the data, so that any two of them add.

The bin is read off the float32 itself: its exponent and the first two bits of its mantissa, four bins to each
doubling, from the smallest number to the largest. Quantile sketches (t-digest, DDSketch) answer the same
question with a dependency and a fixed relative error; these bins are exact and cost a shift.
"""

import torch
from torch import Tensor

from quantriage.records.outliers import Magnitudes

_SHIFT = 21  # of 23 bits of mantissa two are kept
_BINS = 1 << (31 - _SHIFT)
_PIECE = 1 << 20


class MagnitudeBins:
    """Counts of magnitudes, int64."""

    def __init__(self) -> None:
        self.counts = torch.zeros(_BINS, dtype=torch.int64)

    def update(self, values: Tensor) -> None:
        """Add finite values of any shape. Memory: a few integers for each of a million values at a time."""
        for part in values.reshape(-1).split(_PIECE):
            bits = part.to(torch.float32).abs().contiguous().view(torch.int32)
            self.counts += torch.bincount(bits >> _SHIFT, minlength=_BINS).cpu()

    def merge(self, other: "MagnitudeBins") -> None:
        """Add other values' counts."""
        self.counts += other.counts

    def record(self) -> Magnitudes:
        """The bins from the first to the last that hold anything."""
        zeros = int(self.counts[0])
        held = self.counts[1:].nonzero().flatten() + 1
        if not len(held):
            return Magnitudes(zeros=zeros, first=1, counts=())
        first, last = int(held[0]), int(held[-1])
        return Magnitudes(zeros=zeros, first=first, counts=tuple(self.counts[first : last + 1].tolist()))
