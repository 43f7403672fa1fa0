"""The recommendation: shown differences only, sizes weighed, the cheapest that is not shown to be worse."""

import pytest

from quantriage.diagnose.sweep_advice import HeldOut, advise, confirm, size_factor
from quantriage.evaluate.intervals import mean_interval
from quantriage.records.sweep import SweepVariant, kl_left
from quantriage.records.types import Interval

NOISE = (0.02, -0.01, 0.015, -0.02, 0.005, -0.01)


def variant(label: str, kl: float, *, bits: float = 4.0, tokens: int = 0, noise: float = 0.0) -> SweepVariant:
    """A variant whose sequences lie around `kl`; `noise` moves them apart from other variants'."""
    values = tuple(kl * (1 + n) + noise * n for n in NOISE)
    flat = Interval(value=20.0, low=19.0, high=21.0)
    return SweepVariant(
        label=label,
        value=None,
        scheme="w4a-g64",
        method="rtn",
        bits_per_weight=bits,
        bytes=1000,
        rmse=0.1,
        relative_error=0.1,
        output_error=None,
        joint_error=None,
        parts=None,
        rounding_cpu_seconds=0.0,
        statistics_cpu_seconds=0.0,
        calibration_tokens=tokens,
        kl=mean_interval(values),
        perplexity=flat,
        top1_agreement=0.9,
        kl_at_equal_size=mean_interval(values).value * size_factor(bits, 4.0),
        against_baseline=None,
        kl_sequences=values,
        loads=(),
    )


def everyone(*variants: SweepVariant) -> frozenset[str]:
    return frozenset(v.label for v in variants)


def test_a_bit_quarters_the_error_and_half_a_bit_serves_half_of_the_weights() -> None:
    assert size_factor(5.0, 4.0) == 4.0
    assert kl_left(2.0) == 1 / 16
    assert kl_left(0.5) == 0.5 * 1 + 0.5 / 4
    assert kl_left(1.25) == (0.75 * 1 + 0.25 / 4) / 4
    assert kl_left(-0.5) == 0.5 * 4 + 0.5 * 1  # half of the weights give a bit back
    assert size_factor(4.0, 4.5) == pytest.approx(1 / 2.5)


def test_the_least_kl_wins_where_it_is_shown() -> None:
    rows = variant("off", 0.20), variant("a", 0.10), variant("b", 0.15)
    found = advise(rows, "off", "lowest", everyone(*rows))
    assert (found.recommended, found.against) == ("a", "off")
    assert "0.09" in found.reason or "0.1" in found.reason


def test_a_difference_inside_the_noise_keeps_the_baseline_and_names_the_rival() -> None:
    rows = variant("off", 0.1000), variant("a", 0.0999, noise=0.5)
    found = advise(rows, "off", "lowest", everyone(*rows))
    assert (found.recommended, found.against) == ("off", "a")
    assert "No setting is shown to be better" in found.reason


def test_bits_must_pay_for_themselves() -> None:
    # half a bit leaves 0.625 of KL if spent on wider codes
    pays = variant("off", 0.2), variant("small groups", 0.10, bits=4.5)
    wastes = variant("off", 0.2), variant("small groups", 0.15, bits=4.5)
    assert advise(pays, "off", "size", everyone(*pays)).recommended == "small groups"
    kept = advise(wastes, "off", "size", everyone(*wastes))
    assert kept.recommended == "off"
    assert "KL 0.2 to about 0.125" in kept.reason
    assert advise(wastes, "off", "lowest", everyone(*wastes)).recommended == "small groups"


def test_the_cheapest_that_is_not_shown_to_be_worse() -> None:
    rows = (
        variant("none", 0.5),
        variant("8", 0.2, tokens=8),
        variant("16", 0.1005, tokens=16, noise=0.5),
        variant("32", 0.1, tokens=32),
    )
    found = advise(rows, "none", "cheapest", everyone(*rows))
    assert found.recommended == "16"
    assert "2.0 times the tokens" in found.reason


def test_what_does_not_contend_is_not_recommended() -> None:
    rows = variant("off", 0.2), variant("weights only", 0.01), variant("a", 0.1)
    assert advise(rows, "off", "lowest", frozenset({"a"})).recommended == "a"


def test_held_out_text_decides_with_a_paired_interval() -> None:
    base = tuple(0.2 * (1 + 10 * n) for n in NOISE)  # sequences differ more than the variants do
    better = tuple(v * 0.9 for v in base)
    nll = tuple(3.0 + n for n in NOISE)
    first, second = HeldOut("a", 4.0, better, nll), HeldOut("off", 4.0, base, nll)
    found = confirm(first, second, "lowest")
    assert found.verdict == "wins"
    assert found.recommended_kl.high > found.against_kl.low  # unpaired intervals would not show it
    assert found.difference == found.difference_at_equal_size
    assert confirm(second, first, "lowest").verdict == "loses"
    assert confirm(second, second, "lowest").verdict == "no difference shown"


def test_at_equal_size_a_larger_variant_may_lose_what_it_wins_outright() -> None:
    base = HeldOut("off", 4.0, (0.2,) * 6, (3.0,) * 6)
    larger = HeldOut("a", 4.5, (0.15,) * 6, (3.0,) * 6)
    assert confirm(larger, base, "lowest").verdict == "wins"
    found = confirm(larger, base, "size")
    assert found.verdict == "loses"
    assert found.difference_at_equal_size.value == pytest.approx(0.15 / 0.625 - 0.2)
