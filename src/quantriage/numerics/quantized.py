"""The one in-memory record of a quantized weight. Formats are codecs to and from it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.numerics.qparams import float_zero_point
from quantriage.numerics.schemes import PerTensor, Scheme


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantized weight of logical shape [out, in].

    codes: uint8 [out, in], 0 .. 2**bits - 1.
    scale: the scheme's scale dtype, [out, groups] ([1, 1] per tensor, [out, 1] per channel).
    zero_point: uint8 of scale's shape (0 .. 2**bits - 1), or None for a symmetric grid.
    """

    scheme: Scheme
    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape (out, in)."""
        rows, columns = self.codes.shape
        return rows, columns

    def dequantize(self) -> Tensor:
        """(codes - zero_point) * scale, exact in float32, [out, in]."""
        rows, columns = self.shape
        scale = self.scale.to(torch.float32)
        zero = float_zero_point(scale, self.zero_point, self.scheme.grid)
        if isinstance(self.scheme.granularity, PerTensor):
            return (self.codes.to(torch.float32) - zero) * scale
        groups = scale.shape[1]
        codes = self.codes.to(torch.float32).view(rows, groups, columns // groups)
        return ((codes - zero.unsqueeze(-1)) * scale.unsqueeze(-1)).view(rows, columns)
