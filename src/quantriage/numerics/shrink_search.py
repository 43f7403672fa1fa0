"""Shrink each group's range step by step and keep the scale with the least weighted squared error.

A few clipped values cost less than a coarse step for all the others. Every step rounds its scale to the
stored dtype and derives its integer zero point anew, so the error compared is the error that ships. A
golden-section search was rejected: rounding the zero point makes the error jump between neighbours.

Groups lie side by side, [width, groups], so that every operation runs over long contiguous rows with the
scales as one row (three times faster here than groups along the inner axis), in blocks that stay in cache;
few rows share a block among several groups, as in the panels of two-sided rounding.
Memory beyond the weight and the result: five blocks of 256 KB, or five times `width` x 32 floats.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from quantriage.numerics.qparams import QParams, group_ranges, scale_and_zero, stored
from quantriage.numerics.schemes import PerTensor, Scheme

_BLOCK = 1 << 16  # values per block: 256 KB of float32, so that a few blocks fit in a core's L2 cache


def shrink_search(
    weight: Tensor, scheme: Scheme, column_weights: Tensor | None, steps: int, smallest: float
) -> QParams:
    """Best scales of weight [out, in] over `steps` factors from 1 down to `smallest`.

    column_weights: importance of each input, [in], not negative; None weighs all alike. Of equal errors the
    widest range wins, so a group of no importance keeps its full range.
    """
    rows, columns = weight.shape
    importance = weight.new_ones(columns) if column_weights is None else column_weights.to(torch.float32)
    factors = torch.linspace(1.0, smallest, steps).tolist()
    if isinstance(scheme.granularity, PerTensor):
        return _search_tensor(weight, scheme, importance, factors)
    width = scheme.group_width(columns)
    scale = weight.new_empty(rows, columns // width)
    zero = torch.empty_like(scale)
    for rows_taken, groups, block in _blocks(weight, width):
        count = rows_taken.stop - rows_taken.start
        weights = importance.view(-1, width)[groups].T.repeat_interleave(count, 1)
        found = _search_block(block, scheme, weights, factors)
        for best, of_block in zip((scale, zero), found, strict=True):
            best[rows_taken, groups] = of_block.view(-1, count).T
    return stored(scale, zero, scheme)


def _blocks(weight: Tensor, width: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, groups, values [width, groups x rows]) over weight [out, in], each block contiguous."""
    rows, columns = weight.shape
    taken = min(rows, max(32, _BLOCK // width))
    at_once = max(1, _BLOCK // (width * taken))  # of groups: few rows would not be worth a call
    for start in range(0, rows, taken):
        where = slice(start, min(rows, start + taken))
        for group in range(0, columns // width, at_once):
            groups = slice(group, min(columns // width, group + at_once))
            part = weight[where, groups.start * width : groups.stop * width]
            yield where, groups, part.reshape(len(part), -1, width).permute(2, 1, 0).flatten(1).contiguous()


def _search_block(
    block: Tensor, scheme: Scheme, weights: Tensor, factors: list[float]
) -> tuple[Tensor, Tensor]:
    """Best scale and zero point of each column of block and weights [width, groups], each [groups]."""
    low, high = block.amin(0), block.amax(0)
    scratch = torch.empty_like(block)
    best_scale, best_zero = scale_and_zero(low, high, scheme)  # kept where even this error overflows
    best = torch.full_like(low, torch.inf)
    for factor in factors:
        scale, zero = scale_and_zero(low * factor, high * factor, scheme)
        error = _weighted_error(block, scale, zero, scheme, weights, scratch)
        better = error < best
        best = torch.where(better, error, best)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _search_tensor(weight: Tensor, scheme: Scheme, importance: Tensor, factors: list[float]) -> QParams:
    """The same with one scale for the whole weight: errors are summed over all its blocks."""
    low, high = group_ranges(weight, scheme)
    weights = importance.unsqueeze(1)
    best_scale, best_zero = scale_and_zero(low, high, scheme)
    best = torch.inf
    for factor in factors:
        scale, zero = scale_and_zero(low * factor, high * factor, scheme)
        error = 0.0
        for _, _, block in _blocks(weight, weight.shape[1]):
            errors = _weighted_error(block, scale, zero, scheme, weights, torch.empty_like(block))
            error += float(errors.sum(dtype=torch.float64))
        if error < best:
            best, best_scale, best_zero = error, scale, zero
    return stored(best_scale, best_zero, scheme)


def _weighted_error(
    block: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme, weights: Tensor, scratch: Tensor
) -> Tensor:
    """Sum over each column of block [width, groups] of weight times squared rounding error, [groups].

    weights: [width, groups] or [width, 1]. scratch: as block.
    """
    torch.mul(block, scale.reciprocal(), out=scratch)
    scratch.round_().clamp_(-zero, scheme.grid.levels - 1 - zero)
    torch.addcmul(block, scratch, scale, value=-1, out=scratch)
    return scratch.square_().mul_(weights).sum(0)
