from pathlib import Path

import pytest

from quantriage.errors import UsageError
from quantriage.workflows.options import EFFORTS, QuantizeOptions, RecoverOptions


def recovering(**more: object) -> RecoverOptions:
    return RecoverOptions(model="m", calibration=(Path("c"),), evaluate=(Path("e"),), out=Path("o"), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("effort", EFFORTS)
def test_effort_sets_what_was_left_open(effort: str) -> None:
    options = recovering(effort=effort)
    assert {name: getattr(options, name) for name in EFFORTS[effort]} == EFFORTS[effort]


def test_what_was_given_stays() -> None:
    options = recovering(effort="fast", sequences=7, swaps=0)
    assert (options.sequences, options.swaps) == (7, 0)
    assert options.mixes == EFFORTS["fast"]["mixes"]


def test_quantize_takes_only_the_windows_and_the_rounding_of_an_effort() -> None:
    options = QuantizeOptions(model="m", calibration=(Path("c"),), out=Path("o"), effort="best")
    assert options.sequences == EFFORTS["best"]["sequences"]
    assert not hasattr(options, "mixes")


def test_each_effort_does_at_least_as_much_as_the_one_before() -> None:
    fast, balanced, best = EFFORTS.values()
    counts = fast.keys() - {"method", "fold"}
    assert all(int(fast[name]) <= int(balanced[name]) <= int(best[name]) for name in counts)
    assert fast["method"] == "gptq-one-sided"
    assert balanced["method"] == best["method"] == "gptq"
    assert best["fold"] == "channels"


def test_a_baseline_is_folded_only_if_asked() -> None:
    start = {"model": "m", "calibration": (Path("c"),), "out": Path("o"), "effort": "best"}
    assert QuantizeOptions(**start).fold == "channels"
    assert QuantizeOptions(**start, method="rtn").fold == "none"
    assert QuantizeOptions(**start, method="rtn", fold="channels").fold == "channels"
    with pytest.raises(UsageError, match="--fold rows: expected one of channels, none"):
        QuantizeOptions(**start, fold="rows")


def test_an_unknown_effort_is_refused_with_the_choices() -> None:
    with pytest.raises(UsageError, match="--effort slow: expected one of fast, balanced, best"):
        recovering(effort="slow")


def test_recover_refuses_a_rounding_without_loss_weights() -> None:
    with pytest.raises(UsageError, match="--method rtn: expected one of gptq, gptq-one-sided"):
        recovering(method="rtn")


def test_a_baseline_is_learned_only_if_asked() -> None:
    start = {"model": "m", "calibration": (Path("c"),), "out": Path("o"), "effort": "best"}
    assert QuantizeOptions(**start).learn_rounding == 100
    assert QuantizeOptions(**start, method="rtn").learn_rounding == 0
    assert QuantizeOptions(**start, method="rtn", fold="channels").learn_rounding == 0
    assert QuantizeOptions(**start, method="rtn", learn_rounding=5).learn_rounding == 5
    with pytest.raises(UsageError, match="--learn-rounding -1: expected 0 or more steps"):
        QuantizeOptions(**start, learn_rounding=-1)
