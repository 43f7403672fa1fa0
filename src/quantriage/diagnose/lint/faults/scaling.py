"""Errors that are a wrong factor or a constant offset: of the whole weight, or of each group."""

import torch
from torch import Tensor

from quantriage.diagnose.lint.catalogue import finding
from quantriage.diagnose.lint.pair import Pair, residual_of
from quantriage.records.diagnosis import LintFinding

_FACTOR = 0.15  # a factor this far from 1 is no shrinking by rounding ...
_SHRINK_TIMES = 3.0  # ... which takes about the squared expected error off it; three times that is allowed
_WHOLE_STEPS = 0.25  # an offset this near a whole number of steps
_VARIED = 0.15  # spread of log factors: below, all groups share one factor
_SIGNED_PART = 0.02  # groups with flipped signs: at least so many are a pattern of their own


def sign_flipped(pair: Pair) -> LintFinding | None:
    """The candidate is minus the reference, as a whole or in many rows."""
    flipped = pair.sums.row_product < 0
    strong = pair.sums.row_product.abs() > 0.5 * pair.sums.row_power
    share = float((flipped & strong).double().mean())
    if share < _SIGNED_PART:
        return _groups_flipped(pair)
    residual = _signed_residual(pair)
    if not pair.explained(residual):
        return None
    where = "all" if share > 0.98 else f"{100 * share:.0f}% of the"
    return finding(
        "sign-flipped", pair.module, f"{where} rows are minus the reference's; {_left(pair, residual)}"
    )


def scaled(pair: Pair) -> LintFinding | None:
    """One factor for the whole weight."""
    power = float(pair.sums.row_power.sum())
    if power == 0:
        return None
    factor = float(pair.sums.row_product.sum()) / power
    allowed = _FACTOR + _SHRINK_TIMES * pair.expected**2
    if factor <= 0 or abs(factor - 1) < allowed:
        return None
    left = max(0.0, float(pair.sums.row_candidate.sum()) / (factor**2 * power) - 1) ** 0.5
    if not pair.explained(left):
        return None
    text = f"values are {factor:.4g} times the reference's; without that factor {_left(pair, left)}"
    return finding("scaled", pair.module, text)


def offset_by_steps(pair: Pair) -> LintFinding | None:
    """Every weight of a group is off by the same whole number of steps: a zero point that is off."""
    groups = pair.groups
    if groups is None or groups.points is not None:
        return None
    rows, reference, candidate = pair.some_rows()
    scale = groups.scale[rows][:, groups.column_group]
    steps = torch.where(scale != 0, (candidate - reference) / scale, 0.0)
    middle = float(steps.mean(1).median())
    whole = round(middle)
    if whole == 0 or abs(middle - whole) > _WHOLE_STEPS:
        return None
    residual = residual_of(reference, candidate - whole * scale)
    if not pair.explained(residual):
        return None
    text = f"every weight is off by {whole:+d} steps of its scale; without that {_left(pair, residual)}"
    return finding("zero-point-off-by-one", pair.module, text)


def wrong_scales(pair: Pair) -> LintFinding | None:
    """Each group has a wrong factor of its own: codes are right, scales are somebody else's."""
    factors = group_factors(pair)
    if factors is None:
        return None
    ratio, residual = factors
    usable = ratio[ratio > 0]
    if usable.numel() < 2 or float(usable.log().std()) < _VARIED or not pair.explained(residual):
        return None
    low, high = (float(v) for v in torch.quantile(usable[:100_000], torch.tensor([0.1, 0.9])))
    text = f"groups carry factors of {low:.2g} to {high:.2g}; with them undone {_left(pair, residual)}"
    return finding("wrong-scales", pair.module, text)


def group_factors(pair: Pair) -> tuple[Tensor, float] | None:
    """The factor of each group [rows, groups] on sampled rows, and the error left when it is undone.

    A straight line is fitted in each group, since zero points may have gone astray with the scales.
    """
    groups = pair.groups
    if groups is None:
        return None
    _, reference, candidate = pair.some_rows()
    count = groups.scale.shape[1]
    index = groups.column_group.expand(reference.shape[0], -1)
    empty = torch.zeros(reference.shape[0], count)

    def mean(values: Tensor) -> Tensor:
        return empty.scatter_add(1, index, values) / size

    size = empty.scatter_add(1, index, torch.ones_like(reference)).clamp(min=1)
    x, y = mean(candidate), mean(reference)
    variance = mean(candidate * candidate) - x * x
    slope = torch.where(variance > 0, (mean(candidate * reference) - x * y) / variance, 1.0)
    fitted = slope.gather(1, index) * (candidate - x.gather(1, index)) + y.gather(1, index)
    return torch.where(slope != 0, 1 / slope, 0.0), residual_of(reference, fitted)


def _groups_flipped(pair: Pair) -> LintFinding | None:
    factors = group_factors(pair)
    if factors is None:
        return None
    ratio, residual = factors
    share = float((ratio < -0.5).float().mean())
    if share < _SIGNED_PART or not pair.explained(residual):
        return None
    text = f"{100 * share:.0f}% of the groups are minus the reference's; {_left(pair, residual)}"
    return finding("sign-flipped", pair.module, text)


def _signed_residual(pair: Pair) -> float:
    """Error left when each row takes the sign that fits, relative."""
    s = pair.sums
    left = s.row_candidate + s.row_power - 2 * s.row_product.abs()
    return float((left.clamp(min=0).sum() / s.row_power.sum()) ** 0.5)


def _left(pair: Pair, residual: float) -> str:
    return f"the error falls from {100 * pair.relative:.0f}% to {100 * residual:.1f}%"
