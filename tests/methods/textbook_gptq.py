"""GPTQ as its paper derives it, slowly: after each column, the inverse of what is left of the Hessian."""

import torch
from torch import Tensor

from quantriage.numerics.qparams import QParams
from quantriage.numerics.schemes import Scheme


def correlated_hessian(seed: int, columns: int, tokens: int | None = None) -> Tensor:
    """Activations with log-normal channel sizes, two outlier channels and correlations, [in, in]."""
    generator = torch.Generator().manual_seed(seed)
    tokens = 4 * columns if tokens is None else tokens
    mixing = torch.randn(columns // 2, columns, generator=generator)
    hidden = torch.randn(tokens, columns // 2, generator=generator) @ mixing
    hidden = hidden + 0.3 * torch.randn(tokens, columns, generator=generator)
    sizes = torch.exp(torch.randn(columns, generator=generator) * 0.5)
    sizes[:2] *= 8
    inputs = hidden * sizes
    return inputs.T @ inputs


def random_weight(seed: int, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def objective(weight: Tensor, value: Tensor, hessian: Tensor) -> float:
    """tr(dW H dW^T) / tr(W H W^T) in float64."""
    difference, weight, hessian = (weight - value).double(), weight.double(), hessian.double()
    return float((difference @ hessian * difference).sum() / (weight @ hessian * weight).sum())


def textbook_gptq(
    weight: Tensor, hessian: Tensor, scheme: Scheme, qparams: QParams, order: list[int], damping: float
) -> tuple[Tensor, Tensor]:
    """Codes [out, in] and, for each, how far its target lay from the next code's boundary, in steps."""
    rows, columns = weight.shape
    left = weight.double().clone()
    damped = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(columns)
    codes = torch.empty(rows, columns, dtype=torch.int64)
    margin = torch.empty(rows, columns, dtype=torch.float64)
    for visited, column in enumerate(order):
        free = torch.tensor(order[visited:])
        inverse = torch.linalg.inv(damped[free][:, free])
        group = column * qparams.scale.shape[1] // columns
        scale = qparams.scale[:, group].double().expand(rows)
        if qparams.zero_point is None:
            zero = torch.full((rows,), scheme.grid.center)
        else:
            zero = qparams.zero_point[:, group].long().expand(rows)
        steps = left[:, column] / scale
        codes[:, column] = (steps.round() + zero).clamp(0, scheme.grid.levels - 1).long()
        margin[:, column] = 0.5 - (steps - steps.round()).abs()
        error = (left[:, column] - (codes[:, column] - zero) * scale) / inverse[0, 0]
        left[:, free] -= error.unsqueeze(1) * inverse[0].unsqueeze(0)
    return codes, margin
