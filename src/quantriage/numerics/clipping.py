"""Clip every group at one share of its range, and tell what clipping costs from what rounding costs.

A narrower range gives a finer step to the values inside and takes away the ones outside. A weight is clipped
if its code, before it is brought into the grid's range, lies outside; its whole error then counts as
clipping, and that of every other weight as rounding. The two sets are disjoint, so the squared errors add up
to the total without a cross term. Splitting each weight's error into the part beyond the range and the part
inside was rejected: half a step at the ends would count as clipping where nothing was clipped.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.errors import UsageError
from quantriage.numerics.qparams import QParams, float_zero_point, group_ranges, scale_and_zero, stored
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme


@dataclass(frozen=True)
class ErrorSplit:
    """Number of clipped weights, and sums of squared errors of the clipped and of the others."""

    clipped: int
    clipping: float
    rounding: float


def ratio_qparams(weight: Tensor, scheme: Scheme, ratio: float) -> QParams:
    """Scales of weight [out, in] for `ratio` (0 < ratio <= 1) of each group's range, both ends alike."""
    if not 0 < ratio <= 1:
        raise UsageError(f"clipping ratio {ratio}: expected more than 0 and at most 1")
    low, high = group_ranges(weight, scheme)
    return stored(*scale_and_zero(low * ratio, high * ratio, scheme), scheme)


def error_split(weight: Tensor, quantized: QuantizedTensor) -> ErrorSplit:
    """Of nearest codes for weight [out, in], summed in float64. Memory: three float32 copies."""
    rows, columns = weight.shape
    scale = quantized.scale.to(torch.float32)
    zero = float_zero_point(scale, quantized.zero_point, quantized.scheme.grid)
    grouped = weight.reshape(-1, scale.shape[1], columns // scale.shape[1])
    raw = (grouped * scale.reciprocal().unsqueeze(-1)).round_().add_(zero.unsqueeze(-1)).view(rows, columns)
    outside = (raw < 0) | (raw > quantized.scheme.grid.levels - 1)
    squares = quantized.dequantize().sub_(weight).square_()
    clipping = float(squares[outside].sum(dtype=torch.float64))
    squares[outside] = 0.0
    return ErrorSplit(int(outside.sum()), clipping, float(squares.sum(dtype=torch.float64)))
