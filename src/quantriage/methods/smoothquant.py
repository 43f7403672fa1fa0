"""SmoothQuant (arXiv:2211.10438): move part of the activations' range into the weights, then round both.

Y = (x / s) (W s)^T with s_j = max|x_j|^alpha / max|W_j|^(1 - alpha). At alpha 0 the weights' columns come out
even, at 1 the activations' channels. Weights are rounded per output channel, activations per token with a
scale found as the token passes. The right alpha is the one with the least error of the product, which is
measured here on sampled rows of the input, weights and activations rounded together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from quantriage.errors import DataError, UsageError
from quantriage.methods.awq import ScaledWeight
from quantriage.methods.input_statistics import InputStatistics
from quantriage.numerics.choose_qparams import choose_qparams
from quantriage.numerics.min_max import MinMax
from quantriage.numerics.rounding import quantize
from quantriage.numerics.schemes import Scheme

_SMALLEST = 1e-5


def smoothing_scales(max_abs: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """Scales [in] for weights [out_k, in] that read one input of channel maxima max_abs [in].

    A channel without activation or without weight keeps 1: nothing passes through it.
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"smoothing exponent {alpha}: expected 0 to 1")
    largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    used = (max_abs > 0) & (largest > 0)
    scales = max_abs.clamp(min=_SMALLEST).pow(alpha) / largest.clamp(min=_SMALLEST).pow(1 - alpha)
    return torch.where(used, scales.clamp(min=_SMALLEST), 1.0)


def round_tokens(inputs: Tensor, bits: int = 8) -> Tensor:
    """Inputs [..., in] rounded to a symmetric grid with one scale for each token, float32, and back."""
    largest = (1 << (bits - 1)) - 1
    rows = inputs.float()
    scale = rows.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / largest
    return (rows / scale).round_().clamp_(-largest - 1, largest).mul_(scale)


def smooth(
    weights: Sequence[Tensor], statistics: InputStatistics, scheme: Scheme, alpha: float | None
) -> tuple[ScaledWeight, ...]:
    """Weights [out_k, in] of one input, scaled by alpha (None: not at all) and rounded to nearest."""
    if alpha is not None and statistics.max_abs is None:
        raise DataError("SmoothQuant needs the maximum of each input channel; gather them with the Hessian")
    scale = None
    if alpha is not None and statistics.max_abs is not None:
        scale = smoothing_scales(statistics.max_abs, weights, alpha)
    found = []
    for weight in weights:
        scaled = weight if scale is None else weight * scale
        found.append(ScaledWeight(quantize(scaled, scheme, choose_qparams(scaled, scheme, MinMax())), scale))
    return tuple(found)


def joint_error(weight: Tensor, rounded: ScaledWeight, sample: Tensor) -> tuple[float, float]:
    """Squared error of the product with both sides rounded, and the power of the exact product, in float64.

    weight: [out, in]; sample: rows of the input, [n, in].
    """
    scale = rounded.input_scale
    inputs = sample if scale is None else sample / scale
    exact = sample @ weight.T
    error = (round_tokens(inputs) @ rounded.quantized.dequantize().T).sub_(exact)
    return (
        float(error.square_().sum(dtype=torch.float64)),
        float(exact.square_().sum(dtype=torch.float64)),
    )
