"""What the codes of one weight say without a reference: never filled, saturated, or not using their bits."""

import torch
from torch import Tensor

from quantriage.diagnose.lint.catalogue import finding
from quantriage.diagnose.lint.grouping import even_rows, groups_of, is_integer
from quantriage.numerics.stored_weight import StoredWeight
from quantriage.records.diagnosis import LintFinding

_FILLED_ROWS = (
    0.75  # fewer: "constant-rows". Pruned or padded rows of healthy models stay far below a quarter
)
_FEWEST_WEIGHTS = 1024  # a smaller tensor may miss codes by chance
_WINDOW = 128  # the widest groups that are looked at one by one
_OUTLIER_LEVELS = 16  # an outlier leaves few of so few levels to the rest of a row: count over all rows
_MOST_FALSE_LEVELS = 16  # an 8-bit weight of at most so many levels holds 4 bits; healthy ones have > 60
_SATURATION = 1.5  # times the share of a flat histogram; normal weights under the best clipping reach 0.8
_EXPECTED_ENDS = 2.0  # min-max scales put two weights of each group on the ends
_ALL_ROWS = 4096  # constant rows are counted on at most so many


def constant(module: str, stored: StoredWeight) -> LintFinding | None:
    """One code everywhere, or in a large part of the rows."""
    codes = stored.codes
    if codes is None or codes.numel() < 2 or codes.shape[1] < 2:
        return None
    first = int(codes[0, 0])
    some = codes[even_rows(codes.shape[0], _ALL_ROWS)]
    still = (some == some[:, :1]).all(1)
    if bool(still.all()) and bool((codes == first).all()):
        return finding("constant-codes", module, f"all {codes.numel()} codes are {first}")
    share = float(still.float().mean())
    if share > 1 - _FILLED_ROWS:
        return finding("constant-rows", module, f"{100 * share:.0f}% of the rows hold one code throughout")
    return None


def fewer_levels(module: str, stored: StoredWeight) -> LintFinding | None:
    """No group uses more than half of the levels it has: the weight came from fewer bits."""
    codes = stored.codes
    if codes is None or codes.numel() < _FEWEST_WEIGHTS or (stored.levels > 16 and not is_integer(stored)):
        return None
    width = _width(stored)
    some = codes[even_rows(codes.shape[0])]
    if stored.column_group is not None:
        some = some[:, torch.argsort(stored.column_group)]
    alone = stored.scale is None or stored.scale.numel() == 1
    if alone or (stored.levels <= _OUTLIER_LEVELS and width > min(_WINDOW, stored.shape[1] - 1)):
        some, width = some.reshape(1, -1), some.numel()
    most = levels_in_groups(some, width, stored.levels)
    allowed = min(stored.levels // 2, width // 2, _MOST_FALSE_LEVELS)
    if not 1 < most <= allowed:
        return None
    bits, held = (stored.levels - 1).bit_length(), (most - 1).bit_length()
    return finding(
        "fewer-levels",
        module,
        f"groups use at most {most} of {stored.levels} levels: {held} bits stored in {bits}",
    )


def saturated(module: str, stored: StoredWeight) -> LintFinding | None:
    """Far more codes at the two ends than a histogram of weights puts there."""
    codes = stored.codes
    if codes is None or codes.numel() < _FEWEST_WEIGHTS or not is_integer(stored):
        return None
    some = codes[even_rows(codes.shape[0])]
    some = some[(some != some[:, :1]).any(1)]  # a row of zeros may stand at an end
    if not some.numel():
        return None
    ends = float(((some == 0) | (some == stored.levels - 1)).float().mean())
    expected = 2 / stored.levels
    if ends <= _SATURATION * expected + _EXPECTED_ENDS / _width(stored) or stored.levels == 2:
        return None
    return finding(
        "saturated-codes",
        module,
        f"{100 * ends:.0f}% of the codes stand at the two ends; a flat histogram has {100 * expected:.0f}%",
    )


def levels_in_groups(codes: Tensor, width: int, levels: int) -> int:
    """The most different codes that any run of `width` columns of codes [rows, in] holds."""
    columns = codes.shape[1]
    kept = columns // width * width
    runs = codes[:, :kept].reshape(-1, width).to(torch.int64)
    seen = torch.zeros(runs.shape[0], levels, dtype=torch.bool)
    seen.scatter_(1, runs.clamp(0, levels - 1), True)
    return int(seen.sum(1).max()) if runs.shape[0] else 0


def _width(stored: StoredWeight) -> int:
    """Columns that share a scale, all where that is not known."""
    groups = groups_of(stored)
    width = stored.shape[1] if groups is None else stored.shape[1] // groups.scale.shape[1]
    return max(1, width)
