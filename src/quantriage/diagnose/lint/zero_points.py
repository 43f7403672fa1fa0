"""Zero points and column groups of one weight that cannot be right."""

import torch

from quantriage.diagnose.lint.catalogue import finding
from quantriage.diagnose.lint.grouping import even_rows, groups_of
from quantriage.numerics.stored_weight import StoredWeight
from quantriage.records.diagnosis import LintFinding

_COARSE_LEVELS = 16  # at more levels a step is small against the mean of a healthy row
_STEPS = (0.7, 1.3)  # a mean so far from zero, in steps, is an offset of one
_AGREEING_ROWS = 0.95
_FEWEST_COLUMNS = 32  # the mean of fewer weights strays by a large part of a step


def out_of_range(module: str, stored: StoredWeight) -> LintFinding | None:
    """Zero points that no code reaches."""
    zero = stored.zero_point
    if zero is None:
        return None
    bad = int(((zero < 0) | (zero > stored.levels - 1)).sum())
    if not bad:
        return None
    worst = float(zero.to(torch.float32).abs().max())
    return finding(
        "zero-point-range",
        module,
        f"{bad} of {zero.numel()} zero points lie outside 0 .. {stored.levels - 1} (largest {worst:g})",
    )


def lost(module: str, stored: StoredWeight) -> LintFinding | None:
    """All zero points at one end: every weight would have one sign."""
    zero = stored.zero_point
    if zero is None or zero.numel() < 2:
        return None
    for end in (0, stored.levels - 1):
        if bool((zero == end).all()):
            return finding("zero-points-lost", module, f"all {zero.numel()} zero points are {end}")
    return None


def off_by_one(module: str, stored: StoredWeight) -> LintFinding | None:
    """Nearly every row has a mean of one step: healthy rows have a mean of nearly none."""
    groups = groups_of(stored) if stored.zero_point is not None else None
    if groups is None or stored.levels > _COARSE_LEVELS or stored.shape[1] < _FEWEST_COLUMNS:
        return None
    rows = even_rows(stored.shape[0])
    steps = groups.codes[rows].to(torch.float32) - groups.zero[rows][:, groups.column_group]
    means = steps.mean(1)  # [rows]
    middle = float(means.median())
    low, high = _STEPS
    agreeing = float((means.sign() == (1.0 if middle > 0 else -1.0)).float().mean())
    if not low < abs(middle) < high or agreeing < _AGREEING_ROWS:
        return None
    return finding(
        "zero-point-off-by-one",
        module,
        f"rows have a mean of {middle:+.2f} steps, of one sign in {100 * agreeing:.0f}% of them",
    )


def invalid_index(module: str, stored: StoredWeight) -> LintFinding | None:
    """g_idx that points outside the groups, or fills groups unevenly."""
    index, scale = stored.column_group, stored.scale
    if index is None or scale is None or scale.ndim != 2:
        return None
    count = scale.shape[1] if scale.shape[0] in (1, stored.shape[0]) else scale.shape[0]
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= count:
        return finding("g-idx-invalid", module, f"groups {low} .. {high}, but there are {count}")
    filled = torch.bincount(index.to(torch.int64), minlength=count)
    fullest = int(filled.max())
    uneven = int((filled != fullest).sum())
    if uneven > 1:  # the last group may be short
        return finding("g-idx-invalid", module, f"{uneven} of {count} groups do not have {fullest} columns")
    return None
