"""AWQ (arXiv:2306.00978): scale up the inputs' channels that carry much, so that rounding hurts them less.

W x = (W s) (x / s): columns that meet large activations are multiplied by s > 1 before rounding and their
error is divided by s afterwards. s = mean|x|^alpha, brought to a geometric middle of 1, one alpha for each
input by a grid search on the output error of all layers that read it. Then each group's range is searched
with the Hessian's diagonal as importance, and kept where the output error falls.

The error is v H v^T over the rows, with the Hessian of *all* calibration tokens; running the layers again on
a sample of tokens for each alpha, as the original does, costs more and sees less. Here the scale stays beside
the weight, and `dequantize` divides by it: what a fold into the norm or layer before gives, up to rounding.
Layers that read one input share one scale, which is what makes such a fold possible.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.errors import DataError, UsageError
from quantriage.methods.input_statistics import InputStatistics
from quantriage.methods.objective import quadratic
from quantriage.numerics.choose_qparams import choose_qparams
from quantriage.numerics.min_max import MinMax
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.rounding import quantize
from quantriage.numerics.schemes import Scheme
from quantriage.numerics.weighted_mse import WeightedMse

_SMALLEST = 1e-4  # of a scale; a channel that never carries anything must not divide by zero


@dataclass(frozen=True)
class AwqOptions:
    """alphas: exponents tried for each input. clip: search the ranges of groups afterwards."""

    alphas: tuple[float, ...] = tuple(i / 20 for i in range(20))
    clip: bool = True

    def __post_init__(self) -> None:
        if not self.alphas or any(not 0 <= alpha <= 1 for alpha in self.alphas):
            raise UsageError(f"AWQ exponents {self.alphas}: expected one or more between 0 and 1")


@dataclass(frozen=True, eq=False)
class ScaledWeight:
    """A weight rounded after its columns were multiplied by input_scale [in]; None for no scale."""

    quantized: QuantizedTensor
    input_scale: Tensor | None

    def dequantize(self) -> Tensor:
        """The weight [out, in] as it acts on the unscaled input, float32."""
        weight = self.quantized.dequantize()
        return weight if self.input_scale is None else weight.div_(self.input_scale)


@dataclass(frozen=True, eq=False)
class AwqResult:
    """The layers of one input, the alpha they share, and their summed output error at it, v H v^T."""

    weights: tuple[ScaledWeight, ...]
    alpha: float
    error: float


def awq_scales(mean_abs: Tensor, alpha: float) -> Tensor:
    """Scales [in] from mean magnitudes [in]: mean|x|^alpha with sqrt(largest * smallest) = 1."""
    scales = mean_abs.to(torch.float32).pow(alpha).clamp_(min=_SMALLEST)
    return scales / (scales.max() * scales.min()).sqrt()


def awq(
    weights: Sequence[Tensor], statistics: InputStatistics, scheme: Scheme, options: AwqOptions = AwqOptions()
) -> AwqResult:
    """Weights [out_k, in] of one input under the best of the alphas. Memory: three copies of the weights."""
    if statistics.mean_abs is None:
        raise DataError("AWQ needs the mean magnitude of each input channel; gather them with the Hessian")
    best: AwqResult | None = None
    for alpha in options.alphas:
        scale = None if alpha == 0 else awq_scales(statistics.mean_abs, alpha)
        rounded = tuple(_nearest(weight, scale, scheme) for weight in weights)
        error = sum(_error(w, r, statistics.hessian) for w, r in zip(weights, rounded, strict=True))
        if best is None or error < best.error:
            best = AwqResult(rounded, alpha, error)
    assert best is not None
    return _clipped(best, weights, statistics.hessian, scheme) if options.clip else best


def _nearest(weight: Tensor, scale: Tensor | None, scheme: Scheme) -> ScaledWeight:
    scaled = weight if scale is None else weight * scale
    return ScaledWeight(quantize(scaled, scheme, choose_qparams(scaled, scheme, MinMax())), scale)


def _clipped(found: AwqResult, weights: Sequence[Tensor], hessian: Tensor, scheme: Scheme) -> AwqResult:
    """Ranges searched under the scale found; a layer keeps its full ranges where the search does not help."""
    kept, total = [], 0.0
    for weight, plain in zip(weights, found.weights, strict=True):
        scale = plain.input_scale
        scaled = weight if scale is None else weight * scale
        diagonal = hessian.diagonal()
        importance = diagonal if scale is None else diagonal / scale.square()
        search = WeightedMse(importance)
        candidate = ScaledWeight(quantize(scaled, scheme, choose_qparams(scaled, scheme, search)), scale)
        errors = {id(one): _error(weight, one, hessian) for one in (plain, candidate)}
        better = candidate if errors[id(candidate)] < errors[id(plain)] else plain
        kept.append(better)
        total += errors[id(better)]
    return AwqResult(tuple(kept), found.alpha, total)


def _error(weight: Tensor, rounded: ScaledWeight, hessian: Tensor) -> float:
    return float(quadratic(rounded.dequantize().sub_(weight), hessian).sum(dtype=torch.float64))
