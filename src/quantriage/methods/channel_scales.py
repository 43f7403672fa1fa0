"""One scale for each input channel, so that rounding in groups hurts less where the loss reads more.

W x = (W s)(x / s). Columns of a group share a step as wide as the largest entries ask for: it grows with
the p-norm of c_j s_j, c_j being a column's length. An error there costs h_j / s_j^2, h_j being the pivot of
the loss-weighted Hessian: what is left of the diagonal once error feedback has made up for what it can. The
product of step squared and cost, over a group, is least at

    s_j = h_j^a / c_j^(1 - 2a),    a = 1 / (p + 2).

At a = 0 all columns become equally long, at 1/2 all inputs equally large. If somebody multiplied the columns
by t before, and so divided h by t^2, s comes out as s / t: what is rounded does not depend on the scaling
that the model came in. AWQ's mean|x|^alpha (arXiv:2306.00978) does not see the columns and cannot undo such a
scaling; SmoothQuant's max|x|^alpha / max|w|^(1 - alpha) (arXiv:2211.10438) has this form, with maxima.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from quantriage.methods.hessian_factor import factorize

EXPONENT = 1 / 6
_DAMPING = 0.01  # of the mean diagonal, as GPTQ's
_LIMIT = 7.0  # of |log s|; a channel that carries next to nothing needs no more
_NEAR = 2.0**-4


def channel_scales(importance: Tensor, lengths: Tensor, exponent: float = EXPONENT) -> Tensor:
    """s [n] of geometric mean 1 from h [n] and c [n]; 1 where nothing arrives or nothing is read."""
    used = (importance > 0) & (lengths > 0)
    logs = exponent * importance.log() - (1 - 2 * exponent) * lengths.log()
    logs = torch.where(used, logs, 0.0)
    logs = logs - logs.sum() / used.sum().clamp(min=1)
    return torch.where(used, logs.clamp(-_LIMIT, _LIMIT), 0.0).exp()


def fold_scales(
    hessians: Sequence[Tensor], lengths: Tensor, channels: Tensor, exponent: float = EXPONENT
) -> Tensor:
    """s [n] for inputs of Hessians [in, in] whose channels [in] are some of the n; lengths: c [n].

    Pivots depend on the order of the columns, and that on their scaling: they are taken in the scaling that
    the diagonal alone asks for. Memory: two copies of a Hessian.
    """
    diagonal = torch.zeros_like(lengths)
    for hessian in hessians:
        diagonal.index_add_(0, channels, hessian.diagonal())
    first = channel_scales(diagonal, lengths, exponent)[channels]
    pivots = torch.zeros_like(lengths)
    for hessian in hessians:
        scaled = hessian / first / first.unsqueeze(1)
        order = scaled.diagonal().argsort(stable=True)
        pivots.index_add_(0, channels, factorize(scaled, order, _DAMPING).pivots * first.square())
    return channel_scales(torch.where(diagonal > 0, pivots, 0.0), lengths, exponent)


def exactly_stored(vector: Tensor, offset: float, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales [n] moved within a step of `dtype`, so that dividing the vector [n] makes no rounding error.

    vector: as stored, without the `offset` that its module adds. Where `dtype` cannot hold the quotient: 1.
    """
    value = vector.float() + offset
    moved = value / ((value / scales - offset).to(dtype).float() + offset)
    near = (moved / scales - 1).abs() < _NEAR  # false where the quotient overflows or has lost its bits
    return torch.where(near, moved, torch.where(value == 0, scales, 1.0))
