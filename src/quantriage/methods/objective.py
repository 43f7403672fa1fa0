"""The error a method is judged by: the layer's output error on its calibration inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor


def quadratic(rows: Tensor, hessian: Tensor) -> Tensor:
    """v H v^T for every row v of `rows` [out, in], [out]. Memory: one copy of `rows`.

    Rounding may leave a value slightly below zero where the true one is zero; it is raised to zero.
    """
    return torch.mm(rows, hessian).mul_(rows).sum(1).clamp_(min=0.0)


def loss_error(rows: Tensor, hessian: Tensor, outputs: Sequence[Tensor]) -> float:
    """tr(M V H V^T) for V = `rows` [out, in], in float64. Memory: two copies of `rows`.

    outputs: M of consecutive runs of rows, [n, n] each; empty: M is the identity.
    """
    if not outputs:
        return float(quadratic(rows, hessian).sum(dtype=torch.float64))
    parts = torch.split(rows, [len(moment) for moment in outputs])
    total = sum(
        float((torch.mm(moment, part) * torch.mm(part, hessian)).sum(dtype=torch.float64))
        for moment, part in zip(outputs, parts, strict=True)
    )
    return max(0.0, total)


def share(error: float, total: float) -> float:
    """error / total; 0 where the total is 0."""
    return error / total if total > 0 else 0.0
