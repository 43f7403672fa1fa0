"""How far a quantized weight lies from the original, seen from the weights alone.

The data-free rung of the sensitivity ladder. It is cheap and says little about the loss (rank correlation
near zero with the true KL); it is kept as the seed of a diagnosis: a layer that is wrong, not just coarse.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from quantriage.numerics.block_tensor import BlockTensor
from quantriage.numerics.quantized import QuantizedTensor

_SLICE = 1 << 22  # weights of a GGUF type looked at together


@dataclass(frozen=True)
class WeightError:
    """Norms of the difference; `relative` is Frobenius over the original's Frobenius (0 if both are 0)."""

    frobenius: float
    relative: float
    maximum: float
    mean_absolute: float


def weight_error(original: Tensor, quantized: QuantizedTensor | BlockTensor) -> WeightError:
    """Error of `quantized` against `original` [out, in], summed in float64.

    Memory: two float32 copies; of GGUF types, whose rows stand by themselves, of some rows at a time.
    """
    squares = absolute = maximum = 0.0
    for start, part in _slices(quantized):
        difference = part.dequantize()
        difference.sub_(original[start : start + len(difference)].to(torch.float32))
        squares += float(torch.linalg.vector_norm(difference, dtype=torch.float64)) ** 2
        difference.abs_()
        maximum = max(maximum, float(difference.max()))
        absolute += float(difference.sum(dtype=torch.float64))
    frobenius = sqrt(squares)
    norm = float(torch.linalg.vector_norm(original, dtype=torch.float64))
    of_nothing = float("inf") if frobenius > 0 else 0.0
    return WeightError(
        frobenius=frobenius,
        relative=frobenius / norm if norm > 0 else of_nothing,
        maximum=maximum,
        mean_absolute=absolute / original.numel(),
    )


def _slices(quantized: QuantizedTensor | BlockTensor) -> Iterator[tuple[int, QuantizedTensor | BlockTensor]]:
    """First row and part of each."""
    if isinstance(quantized, QuantizedTensor):
        yield 0, quantized
        return
    rows = max(1, _SLICE // quantized.shape[1])
    for start in range(0, len(quantized.raw), rows):
        yield start, BlockTensor(quantized.scheme, quantized.raw[start : start + rows])
