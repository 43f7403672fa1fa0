"""Causes that leave a pattern in a weight's error. Each check is a pure function, most special ones first.

To add one, add its line. A check answers only if undoing the fault it knows removes the error.
"""

from collections.abc import Callable

from quantriage.diagnose.lint.faults import clipping, grouping, local, order, scaling
from quantriage.diagnose.lint.pair import Pair
from quantriage.records.diagnosis import LintFinding

Fault = Callable[[Pair], LintFinding | None]

WHOLE: tuple[Fault, ...] = (
    local.zero_tensor,
    scaling.sign_flipped,
    scaling.scaled,
    scaling.offset_by_steps,
    order.transposed,
    order.rotary,
    order.rows_permuted,
    order.columns_permuted,
    grouping.groups_shifted,
    grouping.act_order_lost,
    local.zeroed_rows,
    local.zeroed_columns,
    scaling.wrong_scales,
    clipping.clipped,
    local.damaged_groups,
)
"""For a weight whose error is far too large."""

LOCAL: tuple[Fault, ...] = (local.zeroed_rows, local.zeroed_columns, local.damaged_groups)
"""For every weight: damage too small to show in the whole."""


def name_cause(pair: Pair, checks: tuple[Fault, ...]) -> LintFinding | None:
    """The first check that explains the error."""
    return next((found for check in checks if (found := check(pair)) is not None), None)
