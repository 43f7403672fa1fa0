"""Types of two levels (Q2_K to Q6_K, IQ4_XS): small integers that share a float16 scale, and minimum.

First each run of 16 or 32 weights gets the scale (and minimum) it would like best. The block's float16 is
set so that the largest of them is the largest integer. Then, in turns: every run tries the integers next
to its own, the codes are rounded anew, and with codes and integers held the float16 numbers of the block
are solved by least squares. A turn that does not lower a block's error is not taken.

Shapes: x and weights u as in `gguf_search`, runs in order; `runs` of them make a block.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantriage.formats.gguf_blocks import BlockFields
from quantriage.formats.gguf_layouts import BlockLayout
from quantriage.formats.gguf_search import Cast, Points, divided, evaluate, fit_line, fit_scale, steps

_TURNS = 3
_NEXT = (0, -1, 1)


@dataclass(frozen=True, eq=False)
class _State:
    """Blocks under search. d, dmin: [blocks, 1]. a, b: integers of scale and minimum as float32,
    [blocks, runs]. error: [blocks, runs].
    """

    d: Tensor
    a: Tensor
    dmin: Tensor | None
    b: Tensor | None
    error: Tensor

    @property
    def scale(self) -> Tensor:
        return self.d * self.a

    @property
    def offset(self) -> Tensor | None:
        return None if self.dmin is None or self.b is None else -(self.dmin * self.b)


def encode_blocks(x: Tensor, u: Tensor, layout: BlockLayout, cast: Cast) -> BlockFields:
    """Fields of weights x [blocks, runs, sub], with weights u of the same shape."""
    points = Points(layout.points)
    low = -layout.scale_zero
    high = low + layout.scale_levels - 1
    state = _start(x, u, layout, points, cast, (low, high))
    for _ in range(_TURNS):
        state = _neighbours(x, u, points, state, (low, high))
        state = _refit(x, u, points, state, cast)
    codes = points.codes(steps(x, state.scale, state.offset)).flatten(1)
    minima = None if state.b is None else state.b.to(torch.int16)
    return BlockFields(codes, state.d, state.dmin, state.a.to(torch.int16), minima)


def _start(
    x: Tensor, u: Tensor, layout: BlockLayout, points: Points, cast: Cast, ends: tuple[int, int]
) -> _State:
    """Each run's own best, rounded to the block's integers."""
    affine = layout.dmin_at is not None
    if affine:
        fit = fit_line(x, u, points, _unrounded, below_zero=True)
    else:
        fit = fit_scale(x, u, points, _unrounded)
    at = fit.scale.abs().argmax(dim=-1, keepdim=True)
    largest = fit.scale.gather(-1, at)  # with its sign; the longer arm of the integers is the lower one
    d = cast(largest / (ends[1] if affine else ends[0]))
    a = _integers(fit.scale, d, ends)
    dmin = b = None
    if fit.offset is not None:
        dmin = cast(-fit.offset.amin(dim=-1, keepdim=True) / ends[1])
        b = _integers(-fit.offset, dmin, (0, ends[1]))
    return _measured(x, u, points, _State(d, a, dmin, b, fit.error))


def _neighbours(x: Tensor, u: Tensor, points: Points, state: _State, ends: tuple[int, int]) -> _State:
    """The best of each run's integers and those next to them."""
    best = state
    for move in _NEXT:
        a = (state.a + move).clamp(*ends)
        for lift in _NEXT if state.b is not None else (0,):
            b = None if state.b is None else (state.b + lift).clamp(0, ends[1])
            if move == 0 and lift == 0:
                continue
            tried = _measured(x, u, points, replace(state, a=a, b=b))
            best = _chosen(tried.error < best.error, tried, best)
    return best


def _refit(x: Tensor, u: Tensor, points: Points, state: _State, cast: Cast) -> _State:
    """The block's float16 numbers by least squares over all its weights, taken where the error falls."""
    q = points.nearest(steps(x, state.scale, state.offset))
    scaled = q * state.a.unsqueeze(-1)  # what d multiplies
    us = u * scaled
    s2, sx = (us * scaled).sum((1, 2)), (us * x).sum((1, 2))
    if state.b is None or state.dmin is None:
        tried = replace(state, d=cast(divided(sx, s2)).unsqueeze(1))
    else:
        b = state.b.unsqueeze(-1)
        ub = u * b
        b2, bx, sb = (ub * b).sum((1, 2)), (ub * x).sum((1, 2)), (us * b).sum((1, 2))
        determinant = s2 * b2 - sb * sb
        d, dmin = divided(sx * b2 - sb * bx, determinant), divided(sb * sx - s2 * bx, determinant)
        alone = (b2 == 0) | (determinant <= 1e-6 * s2 * b2)
        d = torch.where(alone, divided(sx, s2), d)
        tried = replace(
            state,
            d=cast(d).unsqueeze(1),
            dmin=torch.where(alone.unsqueeze(1), state.dmin, cast(dmin).unsqueeze(1)),
        )
    tried = _measured(x, u, points, tried)
    lower = tried.error.sum(1, keepdim=True) < state.error.sum(1, keepdim=True)
    return _chosen(lower, tried, state)


def _chosen(take: Tensor, tried: _State, best: _State) -> _State:
    """`tried` where `take`, [blocks, runs or 1], else `best`."""

    def pick(new: Tensor | None, old: Tensor | None) -> Tensor | None:
        return None if new is None or old is None else torch.where(take, new, old)

    same_block = take.shape[1] == 1  # the block's own numbers only move for all its runs
    return _State(
        d=torch.where(take, tried.d, best.d) if same_block else best.d,
        a=torch.where(take, tried.a, best.a),
        dmin=pick(tried.dmin, best.dmin) if same_block else best.dmin,
        b=pick(tried.b, best.b),
        error=torch.where(take, tried.error, best.error),
    )


def _measured(x: Tensor, u: Tensor, points: Points, state: _State) -> _State:
    """The state with its errors."""
    return replace(state, error=evaluate(x, u, points, state.scale, state.offset).error)


def _integers(values: Tensor, unit: Tensor, ends: tuple[int, int]) -> Tensor:
    """The nearest integers within `ends`, float32; zero where the unit is."""
    return torch.where(unit == 0, 0.0, values / unit).round().clamp(*ends)


def _unrounded(values: Tensor) -> Tensor:
    """A run's own scale is free until the block's integers are chosen."""
    return values
