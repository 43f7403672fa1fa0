"""The verdict over legs: each carrier from figures that leave no doubt, and the edges of every threshold."""

import pytest

from quantriage.diagnose.split import (
    DATA_FACTOR,
    EXPLAINED_FACTOR,
    LEAST_DIFFERENCE,
    LEAST_KL,
    RUNTIME_FACTOR,
    decide,
)
from quantriage.records.diagnosis import GuardFinding, SplitLeg
from quantriage.records.types import Interval

GUARDS = tuple(
    GuardFinding(check=check, holds=True, evidence="the same")
    for check in ("tokenizer", "tokens", "settings")
)


def around(value: float, width: float = 0.02) -> Interval:
    return Interval(value=value, low=value * (1 - width), high=value * (1 + width))


def weights(
    kl: float,
    explained: float = 0.1,
    difference: float = 0.3,
    width: float = 0.02,
    excess: Interval | None = None,
) -> SplitLeg:
    return SplitLeg(
        part="weights",
        label="the text",
        engine="quantriage float32",
        kl=around(kl, width),
        nll_shift=around(kl),
        largest_difference=1.0,
        noise_floor=None,
        tokens=1000,
        mean_difference=around(difference),
        explained_kl=explained,
        excess_kl=excess,
    )


def runtime(difference: float, floor: float = 0.02, engine: str = "vllm 1, float16") -> SplitLeg:
    return SplitLeg(
        part="runtime",
        label="the same file in vllm",
        engine=engine,
        kl=None,
        nll_shift=Interval(value=0.0, low=-0.01, high=0.01),
        largest_difference=4 * difference,
        noise_floor=floor,
        tokens=1000,
        mean_difference=around(difference),
    )


def prompts(kl: float, explained: float | None = 0.1, width: float = 0.02) -> SplitLeg:
    return SplitLeg(
        part="data",
        label="prompts.jsonl",
        engine="quantriage float32",
        kl=around(kl, width),
        nll_shift=around(kl),
        largest_difference=1.0,
        noise_floor=None,
        tokens=1000,
        mean_difference=around(kl),
        explained_kl=explained,
    )


CASES: dict[str, tuple[tuple[SplitLeg, ...], str]] = {
    "healthy": ((weights(0.1), runtime(0.02), prompts(0.12)), "none"),
    "better than plain rounding": ((weights(0.03),), "none"),
    "nothing lost, nothing explained": ((weights(0.5 * LEAST_KL, explained=0.0),), "none"),
    "weights beyond their scheme": ((weights(0.4), runtime(0.02)), "weights"),
    "beyond in pairs, though windows differ": (
        (weights(0.19, explained=0.117, width=0.5, excess=Interval(value=0.015, low=0.008, high=0.02)),),
        "weights",
    ),
    "not beyond in pairs": (
        (weights(0.19, explained=0.117, width=0.01, excess=Interval(value=0.015, low=-0.001, high=0.03)),),
        "none",
    ),
    "dense weights that lose": ((weights(0.02, explained=0.0),), "weights"),
    "just within the factor": ((weights(0.1 * EXPLAINED_FACTOR),), "none"),
    "engine beyond its floor": ((weights(0.1), runtime(0.2)), "runtime"),
    "just within the floor": ((weights(0.1), runtime(0.02 * RUNTIME_FACTOR)), "none"),
    "too small to matter": ((weights(0.1), runtime(0.9 * LEAST_DIFFERENCE, floor=1e-7)), "none"),
    "small but beyond a tiny floor": ((weights(0.1), runtime(2 * LEAST_DIFFERENCE, floor=1e-7)), "runtime"),
    "one engine of two": ((weights(0.1), runtime(0.02), runtime(0.5)), "runtime"),
    "both, weights larger": ((weights(0.9, difference=0.9), runtime(0.2)), "weights"),
    "both, runtime larger": ((weights(0.4, difference=0.2), runtime(0.9)), "runtime"),
    "prompts lose more": ((weights(0.1), runtime(0.02), prompts(0.3)), "data"),
    "prompts within the factor": ((weights(0.1), prompts(0.1 * DATA_FACTOR)), "none"),
    "prompts too uncertain": ((weights(0.1), prompts(0.3, width=0.9)), "none"),
    "prompts, but weights are damaged": ((weights(0.4), prompts(2.0)), "weights"),
    "prompts, but the runtime is at fault": ((weights(0.1), runtime(0.5), prompts(2.0)), "runtime"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_carrier(case: str) -> None:
    legs, carrier = CASES[case]
    decision = decide(GUARDS, legs)
    assert decision.carrier == carrier, decision
    assert decision.sentence.endswith(".")
    assert "  " not in decision.sentence


def test_an_interval_that_reaches_the_limit_is_no_proof() -> None:
    wide = Interval(value=0.4, low=0.9 * EXPLAINED_FACTOR * 0.1, high=0.7)
    (leg,) = (weights(0.4),)
    uncertain = SplitLeg(**{f: getattr(leg, f) for f in leg.__struct_fields__} | {"kl": wide})
    assert decide(GUARDS, (leg,)).carrier == "weights"
    assert decide(GUARDS, (uncertain,)).carrier == "none"


def test_other_tokens_cannot_be_compared_whatever_the_legs_say() -> None:
    failed = GuardFinding(check="tokens", holds=False, evidence="'1234' gives 4 tokens and 1")
    decision = decide((failed, *GUARDS[2:]), (weights(0.4),))
    assert decision.carrier == "not comparable"
    assert "'1234' gives 4 tokens and 1" in decision.sentence


def test_sentences_quote_the_figures_they_rest_on() -> None:
    sentence = decide(GUARDS, (weights(0.1), runtime(0.5))).sentence
    assert "vllm" in sentence
    assert "0.5 [0.49, 0.51]" in sentence
    assert "not to blame" in sentence
    assert "0.4 [0.392, 0.408]" in decide(GUARDS, (weights(0.4),)).sentence


@pytest.mark.parametrize(
    ("explained", "said"), [(0.1, "did not stand for these prompts"), (0.25, "harder for these bits")]
)
def test_data_tells_a_harder_text_from_a_poor_calibration(explained: float, said: str) -> None:
    assert said in decide(GUARDS, (weights(0.1), prompts(0.4, explained=explained))).sentence


def test_the_files_own_settings_are_named_and_an_engine_is_not_blamed_for_them() -> None:
    guards = (
        GuardFinding(check="settings", holds=False, evidence="rms_norm_eps is 1e-06 and 0.1"),
        *GUARDS[:2],
    )
    own = runtime(0.5, floor=0.0, engine="quantriage float32")
    assert "rms_norm_eps is 1e-06 and 0.1" in decide(guards, (weights(0.1), own)).sentence
    assert "rms_norm_eps" not in decide(guards, (weights(0.1), runtime(0.5))).sentence
