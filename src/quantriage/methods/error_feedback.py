"""The inner loop of GPTQ: round column after column, feeding each one's error to those still to come.

The visited range is halved recursively: the later half is rounded, its errors reach the earlier half in one
matrix product, then that half is rounded. Almost all arithmetic so runs in large products, at every level
of the cache, and only runs of `_LEAF` columns pay for single vector operations. A fixed block of 128, as in
the paper, leaves 64 columns on average to such operations.
"""

import torch
from torch import Tensor

from quantriage.methods.hessian_factor import HessianFactor
from quantriage.methods.lanes import LaneGrid, round_to_codes

_LEAF = 16


def feed_back_errors(weight: Tensor, factor: HessianFactor, grid: LaneGrid) -> Tensor:
    """Centred codes of weight [in, lanes] (natural order), float32, same layout.

    Memory: two copies of the weight beside the result.
    """
    errors = weight.index_select(0, factor.order)  # each row holds the weight until its column is visited
    targets = errors.clone()  # each row holds the target, then the codes
    groups = torch.div(factor.order, grid.width, rounding_mode="floor").tolist()
    visit(targets, errors, factor.feedback, grid, groups)
    codes = errors  # reuse: the errors are not needed any more
    codes.index_copy_(0, factor.order, targets)
    return codes


def visit(targets: Tensor, errors: Tensor, feedback: Tensor, grid: LaneGrid, groups: list[int]) -> None:
    """Round all positions, the last first, in place: targets become centred codes, weights their errors.

    targets, errors: [positions, lanes]; feedback: [positions, positions]; groups: the table row of each.
    """
    if len(groups) <= _LEAF:
        _visit_leaf(targets, errors, feedback, grid, groups)
        return
    middle = max(_LEAF, len(groups) // 2 // _LEAF * _LEAF)
    visit(targets[middle:], errors[middle:], feedback[middle:, middle:], grid, groups[middle:])
    targets[:middle].addmm_(feedback[:middle, middle:], errors[middle:])
    visit(targets[:middle], errors[:middle], feedback[:middle, :middle], grid, groups[:middle])


def _visit_leaf(targets: Tensor, errors: Tensor, feedback: Tensor, grid: LaneGrid, groups: list[int]) -> None:
    for position in range(len(groups) - 1, -1, -1):
        target, error, group = targets[position], errors[position], groups[position]
        if position + 1 < len(groups):
            target.addmv_(errors[position + 1 :].T, feedback[position, position + 1 :])
        target.mul_(grid.inverse[group])
        round_to_codes(target, grid.low[group], grid.high[group], grid.points)
        error.addcmul_(target, grid.scale[group], value=-1)
