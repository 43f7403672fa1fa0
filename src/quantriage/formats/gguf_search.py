"""The scale, and minimum, of each run of weights with the least weighted squared error.

Candidates are ranges from wide to clipped. Each is tried with its codes rounded anew, then refined: with
the codes held, the best scale and minimum are a line through the points, solved in closed form. Only what
was tried and found better is kept, so the plain choice, which is the first candidate, is never made worse.
Rejected: the closed form alone from one start, which stays in the first local minimum it meets.

Shapes: x [rows, runs, width], weights u [1 or rows, runs, width], scales and minima [rows, runs].
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

Cast = Callable[[Tensor], Tensor]
"""Rounds scales or minima to what their type can store, in float32."""

# where a range without offset may end, in steps beyond the last point and as parts of the whole range: the
# first find how the points best lie on the weights, the second matter where a step is a small part of it
_BEYOND = (0.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
_CLIPS = (1.1, 0.96, 0.9, 0.8, 0.68)
_TRIMS = (0.0, -1.0, -0.5, 0.5, 1.0, 2.0)  # steps cut off at each end of a line's range, all pairs of them
_WIDEST_TRIM = 0.08  # of the range: a step of two bits is a third of it
_REFITS = 3
_SMALLEST = 1e-30  # scales below are zero: their reciprocal overflows float32


class Points:
    """The code points of a type: rounding to the nearest of them, and the code of each."""

    def __init__(self, points: tuple[int, ...]) -> None:
        self.low, self.high = min(points), max(points)
        self.step = (self.high - self.low) / (len(points) - 1)
        self.even = list(points) == list(range(self.low, self.high + 1))
        if not self.even:
            # points are integers, so what is nearest changes at multiples of a half only
            values = torch.tensor(points, dtype=torch.float32)
            halves = torch.arange(2 * self.low, 2 * self.high + 1) / 2 + 0.25
            self._codes = (values - halves.unsqueeze(1)).abs().argmin(dim=1).to(torch.uint8)
            self._nearest = values[self._codes.to(torch.int64)]

    def nearest(self, t: Tensor) -> Tensor:
        """The nearest point of each t, float32."""
        if self.even:
            return t.round().clamp_(self.low, self.high)
        return self._nearest[self._slot(t)]

    def codes(self, t: Tensor) -> Tensor:
        """The code of the nearest point of each t, uint8."""
        if self.even:
            return (t.round().clamp_(self.low, self.high) - self.low).to(torch.uint8)
        return self._codes[self._slot(t)]

    def _slot(self, t: Tensor) -> Tensor:
        return ((2 * t).floor().clamp_(2 * self.low, 2 * self.high) - 2 * self.low).to(torch.int32)


@dataclass(frozen=True, eq=False)
class Fit:
    """Scales, offsets (None where a type has none) and their weighted squared errors, [rows, runs]."""

    scale: Tensor
    offset: Tensor | None
    error: Tensor

    def better(self, other: "Fit") -> "Fit":
        """Run by run, the one with the smaller error; this one where both are equal."""
        take = other.error < self.error
        offset = None
        if self.offset is not None and other.offset is not None:
            offset = torch.where(take, other.offset, self.offset)
        return Fit(
            torch.where(take, other.scale, self.scale), offset, torch.where(take, other.error, self.error)
        )


def steps(x: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """x in units of the scale, [rows, runs, width]; zero where the scale is."""
    inverse = torch.where(scale.abs() < _SMALLEST, 0.0, scale.reciprocal()).unsqueeze(-1)
    return x * inverse if offset is None else (x - offset.unsqueeze(-1)) * inverse


def evaluate(x: Tensor, u: Tensor, points: Points, scale: Tensor, offset: Tensor | None) -> Fit:
    """What a scale and offset give when every weight takes its nearest point."""
    left = points.nearest(steps(x, scale, offset)).mul_(scale.unsqueeze(-1)).sub_(x)
    if offset is not None:
        left += offset.unsqueeze(-1)
    return Fit(scale, offset, left.square_().mul_(u).sum(dim=-1))


def fit_scale(x: Tensor, u: Tensor, points: Points, cast: Cast) -> Fit:
    """Best scale of types without an offset, of either sign: the longer arm may reach either way."""
    at = x.abs().argmax(dim=-1, keepdim=True)
    largest = x.gather(-1, at).squeeze(-1)  # with its sign
    ends = (points.low, points.high) if -points.low >= points.high else (points.high, points.low)
    best: Fit | None = None
    for end in ends:
        for divisor in (
            *(end + beyond * points.step * (1 if end > 0 else -1) for beyond in _BEYOND),
            *(end / clip for clip in _CLIPS),
        ):
            tried = evaluate(x, u, points, cast(largest / divisor), None)
            best = tried if best is None else best.better(tried)
    assert best is not None
    for _ in range(_REFITS):
        q = points.nearest(steps(x, best.scale, None))
        uq = u * q
        scale = divided((uq * x).sum(-1), (uq * q).sum(-1))
        best = best.better(evaluate(x, u, points, cast(scale), None))
    return best


def fit_line(x: Tensor, u: Tensor, points: Points, cast: Cast, below_zero: bool) -> Fit:
    """Best scale and offset; `below_zero` keeps the offset from being positive, as k-quants need."""
    low, high = x.amin(dim=-1), x.amax(dim=-1)
    if below_zero:
        low = low.clamp(max=0)
    unit = (high - low) * min(1 / points.high, _WIDEST_TRIM)
    best = evaluate(x, u, points, cast((high - low) / points.high), cast(low))
    for below, above in product(_TRIMS, _TRIMS):
        start = low + below * unit
        start = start.clamp(max=0) if below_zero else start
        scale = cast((high - above * unit - start).clamp(min=0) / points.high)
        tried = evaluate(x, u, points, scale, cast(start))
        best = best.better(tried).better(_line(x, u, points, tried, cast, below_zero))
    for _ in range(_REFITS):
        best = best.better(_line(x, u, points, best, cast, below_zero))
    return best


def _line(x: Tensor, u: Tensor, points: Points, fit: Fit, cast: Cast, below_zero: bool) -> Fit:
    """Weighted least squares of x against the points that `fit` rounds to."""
    assert fit.offset is not None
    q = points.nearest(steps(x, fit.scale, fit.offset))
    u = u.expand_as(x)
    uq, ux = u * q, u * x
    n, q1, x1 = u.sum(-1), uq.sum(-1), ux.sum(-1)
    q2, qx = (uq * q).sum(-1), (uq * x).sum(-1)
    determinant = n * q2 - q1 * q1
    scale = divided(n * qx - q1 * x1, determinant)
    offset = divided(q2 * x1 - q1 * qx, determinant)
    if below_zero:
        over = (offset > 0) | (scale < 0)
        scale = torch.where(over, divided(qx, q2).clamp(min=0), scale)
        offset = torch.where(over, 0.0, offset)
    return evaluate(x, u, points, cast(scale), cast(offset))


def divided(above: Tensor, below: Tensor) -> Tensor:
    """above / below, zero where below is or nearly."""
    return torch.where(below.abs() < _SMALLEST, 0.0, above / below)
