"""Damage to a part: rows, columns or groups that are zero or wrong while the rest is sound."""

import torch
from torch import Tensor

from quantriage.diagnose.lint.catalogue import finding
from quantriage.diagnose.lint.pair import Pair
from quantriage.records.diagnosis import LintFinding

_GONE = 1e-4  # candidate's power over the reference's, below which nothing is left
_LOUD = 8.0  # times the median error: a column too small for its step loses at most three times as much
_OUTLIER = 3.0  # times the median norm: a column that matters most
_LARGE_GROUP = 0.25  # of the median power; smaller groups may be lost by healthy rounding
_WRONG = 0.9  # relative error of a group whose values have nothing to do with the reference's ...
_WRONG_TIMES = 4.0  # ... and over so many times what rounding costs: below 3 bits nothing is said
_SOUND, _SOUND_TIMES = 0.03, 2.0  # error of the other groups at most, as it is and over the expected


def zero_tensor(pair: Pair) -> LintFinding | None:
    """Nothing is left of the whole weight."""
    power = float(pair.sums.row_power.sum())
    if power == 0 or float(pair.sums.row_candidate.sum()) > _GONE * power:
        return None
    return finding("zero-tensor", pair.module, "all values are 0, the reference's are not")


def zeroed_rows(pair: Pair) -> LintFinding | None:
    """Rows of zeros whose reference is not small."""
    s = pair.sums
    gone = _gone(s.row_power, s.row_candidate, s.row_error)
    if not len(gone):
        return None
    text = f"{len(gone)} of {s.row_power.numel()} rows are 0 ({_places(gone)}), the reference's are not"
    return finding("zeroed-rows", pair.module, text)


def zeroed_columns(pair: Pair) -> LintFinding | None:
    """Columns of zeros; an error where they were the largest, a warning where calibration found no input."""
    s = pair.sums
    gone = _gone(s.column_power, s.column_candidate, s.column_error)
    if not len(gone):
        return None
    norms = s.column_power.sqrt()
    largest = float(norms[gone].max() / norms.median().clamp(min=1e-30))
    text = (
        f"{len(gone)} of {norms.numel()} columns are 0 ({_places(gone)}); "
        f"the largest has {largest:.1f} times the norm of the median column"
    )
    severe = largest > _OUTLIER or 10 * len(gone) > norms.numel()
    return finding("zeroed-columns", pair.module, text, severity="error" if severe else "warning")


def damaged_groups(pair: Pair) -> LintFinding | None:
    """Groups (rows, where groups are not known) whose values are wrong altogether while most are sound."""
    limit = max(_WRONG, _WRONG_TIMES * pair.expected)
    if pair.expected > _WRONG / _WRONG_TIMES:
        return None
    width = _width(pair)
    error, power = _group_sums(pair, width)
    large = power > _LARGE_GROUP * power.median()
    wrong = large & (error > limit**2 * power)
    count = int(wrong.sum())
    rest = float(error[~wrong].sum() / power[~wrong].sum().clamp(min=1e-30)) ** 0.5
    if not count or 2 * count > wrong.numel() or rest > max(_SOUND_TIMES * pair.expected, _SOUND):
        return None
    rows = wrong.any(1).nonzero().flatten()
    text = (
        f"{count} of {wrong.numel()} groups of {width} are wrong by more than {100 * limit:.0f}% "
        f"(rows {_places(rows)}); the others are sound"
    )
    return finding("damaged-groups", pair.module, text)


def _gone(power: Tensor, left: Tensor, error: Tensor) -> Tensor:
    """Indices of rows or columns of which nothing is left although that costs far more than rounding."""
    typical = error[error > 0].median() if bool((error > 0).any()) else error.sum()
    floor = _LARGE_GROUP * power.median()
    loud = error > (_LOUD * typical).clamp(max=float(power.median()) * 0.5)
    return (loud & (power > floor) & (left < _GONE * power)).nonzero().flatten()


def _width(pair: Pair) -> int:
    groups = pair.groups
    columns = pair.reference.shape[1]
    if groups is None or (pair.stored is not None and pair.stored.column_group is not None):
        return columns
    return columns // groups.scale.shape[1]


def _group_sums(pair: Pair, width: int) -> tuple[Tensor, Tensor]:
    """Squares of the difference and of the reference, summed over groups [out, groups]."""
    rows = pair.reference.shape[0]
    if width == pair.reference.shape[1]:
        return pair.sums.row_error.view(rows, 1), pair.sums.row_power.view(rows, 1)
    errors, powers = [], []
    for left, right in zip(pair.reference.split(512), pair.candidate.split(512), strict=True):
        reference = left.to(torch.float32).view(left.shape[0], -1, width)
        difference = right.to(torch.float32).view(left.shape[0], -1, width) - reference
        errors.append(difference.square().sum(-1))
        powers.append(reference.square().sum(-1))
    return torch.cat(errors), torch.cat(powers)


def _places(indices: Tensor) -> str:
    listed = ", ".join(str(int(i)) for i in indices[:4])
    return listed + (", ..." if len(indices) > 4 else "")
