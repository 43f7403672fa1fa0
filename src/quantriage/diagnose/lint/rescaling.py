"""Rows and columns rescaled on purpose (AWQ, SmoothQuant), and whether that was undone elsewhere.

Such a weight differs much from the reference's while the model computes the same: the norm in front, or the
matrix before or behind, carries the inverse. Found by fitting candidate = rows * reference * columns, and
proved by the inverse factors in the same block. Unproved, it is a fault.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.diagnose.lint.pair import EXPLAINED_TIMES, Pair

_ROUNDS = 3  # of alternating least squares; the fit is nearly exact after two
_FLAT = 0.05  # spread of log factors below which nothing was rescaled; rounding alone gives 0.02
_LEAST = 0.02  # spread from which factors that agree with others' are no accident
_AGREEING = 0.9  # correlation of log factors with the inverse ones


@dataclass(frozen=True)
class Rescaling:
    """Factors of a module's rows [out] and columns [in] over the reference's, float32."""

    rows: Tensor
    columns: Tensor

    @property
    def of_rows(self) -> bool:
        """Whether outputs were rescaled."""
        return _spread(self.rows) > _FLAT

    @property
    def of_columns(self) -> bool:
        """Whether inputs were rescaled."""
        return _spread(self.columns) > _FLAT


def fit_rescaling(pair: Pair) -> Rescaling | None:
    """The factors, if they explain the error; all must be positive. Memory: three copies of the weight."""
    reference, candidate = pair.reference.to(torch.float32), pair.candidate.to(torch.float32)
    product, power = reference * candidate, reference.square()
    columns = torch.ones(reference.shape[1])
    rows = torch.ones(reference.shape[0])
    for _ in range(_ROUNDS):
        columns = _ratio(rows @ product, rows.square() @ power)
        rows = _ratio(product @ columns, power @ columns.square())
    if not bool((rows > 0).all() and (columns > 0).all()):
        return None
    fitted = rows.unsqueeze(1) * reference * columns
    norm = float(fitted.norm())
    residual = float((candidate - fitted).norm()) / norm if norm > 0 else 0.0
    fit = Rescaling(rows, columns)
    if residual > max(EXPLAINED_TIMES * pair.expected, 0.03) or residual > 0.8 * pair.relative:
        return None
    return fit if fit.of_rows or fit.of_columns else None


def undoes(factors: Tensor, others: Tensor, head_width: int | None) -> bool:
    """Whether `others` are the inverse of `factors` up to a constant; a key-value head may serve several."""
    small, large = sorted((factors, others), key=Tensor.numel)
    if small.numel() != large.numel():
        if head_width is None or small.numel() % head_width or large.numel() % small.numel():
            return False
        repeats = large.numel() // small.numel()
        small = small.view(-1, 1, head_width).expand(-1, repeats, -1).reshape(-1)
    if not bool((small > 0).all() and (large > 0).all()):
        return False
    left, right = small.log(), large.log()
    if _spread(small) < _LEAST or _spread(large) < _LEAST:
        return False
    return float(torch.corrcoef(torch.stack([left, -right]))[0, 1]) > _AGREEING


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below, 1.0)


def _spread(factors: Tensor) -> float:
    positive = factors[factors > 0]
    return float(positive.log().std()) if positive.numel() > 1 else 0.0
