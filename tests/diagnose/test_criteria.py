"""The default criterion of a bisect, on figures alone."""

from typing import cast

from quantriage.diagnose.criteria import ExcessKl
from quantriage.diagnose.hybrid_runs import HybridRuns

UNITS = frozenset("abcd")
PLAIN = dict.fromkeys("abcd", 0.1)


def excess(healthy: dict[str, float]) -> ExcessKl:
    return ExcessKl(cast(HybridRuns, None), healthy, PLAIN)  # nothing is measured here


def test_a_culprit_shows_below_what_plain_rounding_of_all_would_lose() -> None:
    criterion = excess(dict.fromkeys("abcd", 0.02))  # good rounding: a fifth of plain rounding
    assert criterion.begin(UNITS, 0.3)
    assert criterion.bad(frozenset("ab"), 0.26)
    assert not criterion.bad(frozenset("cd"), 0.04)


def test_plain_rounding_is_healthy_and_so_is_good_rounding() -> None:
    assert not excess(PLAIN).begin(UNITS, 0.44)
    assert not excess(dict.fromkeys("abcd", 0.02)).begin(UNITS, 0.12)
    assert excess(PLAIN).begin(UNITS, 0.55)


def test_a_remainder_is_measured_against_the_first_threshold() -> None:
    criterion = excess(dict.fromkeys("abcd", 0.0001))
    assert criterion.begin(UNITS, 0.5)
    assert not criterion.begin(frozenset("cd"), 0.009)  # under 2% of the first
    assert criterion.begin(frozenset("cd"), 0.02)
