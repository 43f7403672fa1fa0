"""The error a method is judged by: the layer's output error on its calibration inputs."""

import torch
from torch import Tensor


def quadratic(rows: Tensor, hessian: Tensor) -> Tensor:
    """v H v^T for every row v of `rows` [out, in], [out]. Memory: one copy of `rows`.

    Rounding may leave a value slightly below zero where the true one is zero; it is raised to zero.
    """
    return torch.mm(rows, hessian).mul_(rows).sum(1).clamp_(min=0.0)


def relative_objective(error: Tensor, total: Tensor) -> float:
    """Sum of `error` over sum of `total`, both [out], in float64; 0 where the total is 0."""
    denominator = float(total.sum(dtype=torch.float64))
    return float(error.sum(dtype=torch.float64)) / denominator if denominator > 0 else 0.0
