"""Blame for a cost that other units' errors undo. Figures as AutoRound's stories15M gave them."""

from quantriage.diagnose.compensation import blamed, cancelling, reconsidered
from quantriage.records.diagnosis import Judgement, UnitAttribution


def unit(name: str, judgement: Judgement, swap: float, gain: float | None = None) -> UnitAttribution:
    return UnitAttribution(
        unit=name,
        block=0,
        category="mlp",
        layout="w4s-g32",
        bits=4.5,
        relative_error=0.1,
        nearest_error=0.1,
        predicted_kl=None,
        swap_kl=swap,
        restore_gain=gain,
        judgement=judgement,
        reason="carries 59% of the loss",
    )


UP, DOWN = unit("up", "badly done", 0.0455), unit("down", "badly done", 0.0392)
FINE, DAMAGED = unit("fine", "fine", 0.001), unit("broken", "damaged", 0.5)


def test_independent_errors_need_no_check() -> None:
    assert not cancelling(None)
    assert not cancelling(0.83)
    assert not cancelling(1.1)
    assert cancelling(2.79)


def test_blame_that_a_restore_does_not_bear_out_is_withdrawn() -> None:
    units = [UP, FINE, DAMAGED, DOWN]
    found = reconsidered(units, gain=-0.0121)
    assert [one.judgement for one in found] == ["hard", "fine", "damaged", "hard"]
    assert "errors of other units undo that" in found[0].reason
    assert "would lose 0.012 more" in found[0].reason
    assert found[1:3] == [FINE, DAMAGED]
    assert blamed(found) == []


def test_blame_stands_where_the_loss_goes_with_the_units() -> None:
    assert reconsidered([UP, DOWN], gain=0.06) == [UP, DOWN]
    assert [one.judgement for one in reconsidered([UP, DOWN], gain=0.02)] == ["hard", "hard"]


def test_a_unit_of_its_own_gain_is_judged_by_it() -> None:
    guilty, innocent = unit("a", "badly done", 0.04, gain=0.03), unit("b", "badly done", 0.04, gain=-0.01)
    assert [one.judgement for one in reconsidered([guilty, innocent], gain=-0.5)] == ["badly done", "hard"]
    assert [one.judgement for one in reconsidered([guilty, innocent], gain=0.5)] == ["badly done", "hard"]
