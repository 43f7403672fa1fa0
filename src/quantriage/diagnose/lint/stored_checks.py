"""The checks that look at one stored weight alone. To add one, add its line."""

from collections.abc import Callable

from quantriage.diagnose.lint import codes, scales, zero_points
from quantriage.numerics.stored_weight import StoredWeight
from quantriage.records.diagnosis import LintFinding

StoredCheck = Callable[[str, StoredWeight], LintFinding | None]
"""(module, what is stored) -> what is wrong with it."""

STORED_CHECKS: tuple[StoredCheck, ...] = (
    codes.constant,
    codes.fewer_levels,
    codes.saturated,
    scales.nonfinite,
    scales.zero,
    scales.subnormal,
    scales.negative,
    scales.overflowing,
    zero_points.out_of_range,
    zero_points.lost,
    zero_points.off_by_one,
    zero_points.invalid_index,
)


def check_stored(module: str, stored: StoredWeight) -> list[LintFinding]:
    """What all checks say of one weight."""
    return [found for check in STORED_CHECKS if (found := check(module, stored)) is not None]
