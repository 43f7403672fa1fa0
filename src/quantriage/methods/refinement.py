"""Improve codes and scales that GPTQ chose, one group after another, with the whole Hessian in view.

GPTQ never looks back: the first column is rounded before anyone knows what the last will need. Here each
group's scale is set to its exact least-squares optimum given all codes (then rounded to the stored dtype,
and kept only if still better), and each of its codes to the exact optimum given everything else. Every step
can only lower the damped objective, so the order does not matter and it may stop at any time.

Tried and left out, on layers of a 135M-parameter model: re-fitting the zero point given the codes (its
optimum lies within 0.3 steps of where it is, so rounding keeps it; 1 group in 150,000 moved), running GPTQ
again with the refitted scales (loses to two more sweeps), and shrinking both ends of a range apart in the
first search (0.5% less error, before the sweeps and after, for four and a half times the search).
"""

import torch
from torch import Tensor

from quantriage.formats.gguf_search import Points
from quantriage.methods.lanes import LaneGrid, round_to_codes
from quantriage.numerics.qparams import SCALE_DTYPES
from quantriage.numerics.schemes import ScaleDtype

_LEAF = 16


def refine(
    weight: Tensor,
    codes: Tensor,
    grid: LaneGrid,
    hessian: Tensor,
    damping: float,
    sweeps: int,
    rescale: ScaleDtype | None,
) -> tuple[Tensor, Tensor]:
    """Better centred codes [in, lanes] and scales [in / width, lanes] for weight [in, lanes].

    grid.width is the group that shares a scale. damping: added to the Hessian's diagonal, absolute. rescale:
    the dtype scales are stored in, or None to keep them. Memory: three copies of the weight, and two of one
    group's rows.
    """
    codes, scale = codes.clone(), grid.scale.clone()
    errors = _errors(weight, codes, scale, grid.width)
    for _ in range(sweeps):
        for group in range(scale.shape[0]):
            rows = slice(group * grid.width, (group + 1) * grid.width)
            if rescale is not None:
                _refit_scale(codes[rows], scale[group], errors, hessian, damping, rows, rescale)
            bounds = grid.low[group], grid.high[group]
            for first in range(rows.start, rows.stop, _LEAF):
                leaf = slice(first, min(rows.stop, first + _LEAF))
                _visit_codes(codes, scale[group], bounds, grid.points, errors, hessian, damping, leaf)
    return codes, scale


def _errors(weight: Tensor, codes: Tensor, scale: Tensor, width: int) -> Tensor:
    grouped = codes.view(-1, width, codes.shape[1])
    return torch.addcmul(weight.view(grouped.shape), grouped, scale.unsqueeze(1), value=-1).view(weight.shape)


def _refit_scale(
    codes: Tensor,
    scale: Tensor,
    errors: Tensor,
    hessian: Tensor,
    damping: float,
    rows: slice,
    dtype: ScaleDtype,
) -> None:
    """Set scale [lanes] of the group at `rows` to its optimum given codes [width, lanes], in place.

    Along a change d of the scale the objective moves by -2 d slope + d^2 curvature.
    """
    own = errors[rows]
    slope = torch.addmm(own, hessian[rows], errors, beta=damping).mul_(codes).sum(0)
    curvature = torch.addmm(codes, hessian[rows, rows], codes, beta=damping).mul_(codes).sum(0)
    limits = torch.finfo(SCALE_DTYPES[dtype])
    best = scale + slope / curvature.clamp(min=torch.finfo(torch.float32).tiny)
    sign = torch.where(scale < 0, -1.0, 1.0)  # kept: GGUF types have scales of either
    best = (best * sign).clamp(limits.tiny, limits.max).mul_(sign).to(SCALE_DTYPES[dtype]).to(torch.float32)
    change = best - scale
    change = torch.where(2 * change * slope > change.square() * curvature, change, 0.0)
    own.addcmul_(codes, change, value=-1)
    scale.add_(change)  # exact: both are values of the stored dtype, so their sum is `best` again


def _visit_codes(
    codes: Tensor,
    scale: Tensor,
    bounds: tuple[Tensor, Tensor],
    points: Points | None,
    errors: Tensor,
    hessian: Tensor,
    damping: float,
    leaf: slice,
) -> None:
    """Set every code of the columns `leaf` in turn to its optimum given all others, in place."""
    inverse = scale.reciprocal()
    diagonal = (hessian.diagonal()[leaf] + damping).clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
    wanted = torch.addmm(errors[leaf], hessian[leaf], errors, beta=damping).div_(diagonal)
    within = hessian[leaf, leaf] / diagonal
    changes = torch.empty_like(wanted)  # of the errors, by the visits so far
    for place in range(leaf.stop - leaf.start):
        value, code = wanted[place], codes[leaf.start + place]
        if place:
            value.addmv_(changes[:place].T, within[place, :place])
        value.addcmul_(code, scale).mul_(inverse)
        round_to_codes(value, *bounds, points)
        torch.sub(code, value, out=changes[place]).mul_(scale)
        code.copy_(value)
    errors[leaf].add_(changes)
