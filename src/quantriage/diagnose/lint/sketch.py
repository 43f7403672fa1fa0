"""A fingerprint of a matrix that survives rounding: its product with a few random directions on both sides.

Two weights of one shape that are the same up to rounding have nearly the same fingerprint; unrelated ones
have a cosine of 0 +- 0.06. Comparing all with all then costs nothing, and nothing else is kept in memory.
"""

import torch
from torch import Tensor

_LEFT, _RIGHT = 32, 8  # 256 numbers


def sketch(weight: Tensor) -> Tensor:
    """Weight [out, in] to a unit vector [256], float32; directions depend on the shape alone."""
    generator = torch.Generator().manual_seed(weight.shape[0] * 1_000_003 + weight.shape[1])
    right = torch.randn(weight.shape[1], _RIGHT, generator=generator)
    left = torch.randn(_LEFT, weight.shape[0], generator=generator)
    narrow = torch.cat([part.to(torch.float32) @ right for part in weight.split(4096)])
    flat = (left @ narrow).flatten()
    return torch.nan_to_num(flat / flat.norm().clamp(min=1e-30))
