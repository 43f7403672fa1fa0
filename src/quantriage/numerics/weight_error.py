"""How far a quantized weight lies from the original, seen from the weights alone.

The data-free rung of the sensitivity ladder. It is cheap and says little about the loss (rank correlation
near zero with the true KL); it is kept as the seed of a diagnosis: a layer that is wrong, not just coarse.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.numerics.block_tensor import BlockTensor
from quantriage.numerics.quantized import QuantizedTensor


@dataclass(frozen=True)
class WeightError:
    """Norms of the difference; `relative` is Frobenius over the original's Frobenius (0 if both are 0)."""

    frobenius: float
    relative: float
    maximum: float
    mean_absolute: float


def weight_error(original: Tensor, quantized: QuantizedTensor | BlockTensor) -> WeightError:
    """Error of `quantized` against `original` [out, in], summed in float64. Memory: two float32 copies."""
    difference = quantized.dequantize().sub_(original.to(torch.float32))
    frobenius = float(torch.linalg.vector_norm(difference, dtype=torch.float64))
    norm = float(torch.linalg.vector_norm(original, dtype=torch.float64))
    difference.abs_()
    of_nothing = float("inf") if frobenius > 0 else 0.0
    return WeightError(
        frobenius=frobenius,
        relative=frobenius / norm if norm > 0 else of_nothing,
        maximum=float(difference.max()),
        mean_absolute=float(difference.mean(dtype=torch.float64)),
    )
