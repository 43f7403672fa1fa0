"""Weights, runtime or data: which of the three carries a candidate's loss, decided from what was measured.

A pure function of records, so that every verdict can be recomputed and argued with. Three questions, each
against what a healthy candidate does anyway: do the weights lose more than plain rounding in their own
schemes would; does an engine depart from reference mathematics by more than it does on the unquantized
reference; does the loss on other prompts exceed that on the text. Weights and runtime are laid beside each
other by the mean absolute change of the text's log-probabilities, which both have and which a change of
perplexity, being signed, would hide. Data is blamed only if neither of them is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quantriage.evaluate.guard import SETTINGS, comparable
from quantriage.records.diagnosis import GuardFinding, SplitLeg
from quantriage.records.types import Interval

Carrier = Literal["weights", "runtime", "data", "none", "not comparable"]

EXPLAINED_FACTOR = 1.25  # of plain rounding's KL, that weights may lose and still be healthy
LEAST_KL = 1e-3  # nats; below it nothing was lost, whatever the ratio
RUNTIME_FACTOR = 3.0  # of the noise floor, that an engine may depart
LEAST_DIFFERENCE = 0.01  # nats, mean |change of log p|: a KL of about 1e-4
DATA_FACTOR = 1.5  # of the text's KL, that prompts may lose


@dataclass(frozen=True)
class Decision:
    """The carrier, and why in one sentence or two with the figures."""

    carrier: Carrier
    sentence: str


def decide(guards: Sequence[GuardFinding], legs: Sequence[SplitLeg]) -> Decision:
    """The verdict over all legs. The first weights leg is on the text, data legs on other prompts."""
    if not comparable(guards):
        failed = next(guard for guard in guards if guard.check == "tokens" and not guard.holds)
        return Decision("not comparable", f"The two models do not see the same tokens: {failed.evidence}.")
    weights = next((leg for leg in legs if leg.part == "weights"), None)
    if weights is None or weights.kl is None:
        return Decision(
            "not comparable", "The candidate's weights were not evaluated in reference mathematics."
        )
    faulty = max(
        (leg for leg in legs if leg.part == "runtime" and beyond_floor(leg)), key=_departure, default=None
    )
    damaged = beyond_scheme(weights)
    if faulty is not None and not (damaged and _departure(weights) >= _departure(faulty)):
        also = f" The weights lose too: {_weights(weights)}." if damaged else ""
        return Decision("runtime", f"{_runtime(faulty, guards)}.{also or f' {_exonerated(weights)}.'}")
    if damaged:
        also = f" An engine departs as well: {_runtime(faulty, guards)}." if faulty is not None else ""
        return Decision("weights", f"{_weights(weights)[:1].upper()}{_weights(weights)[1:]}.{also}")
    worse = max(
        (leg for leg in legs if leg.part == "data" and beyond_text(leg, weights)),
        key=lambda leg: leg.kl.value if leg.kl else 0.0,
        default=None,
    )
    if worse is not None:
        return Decision("data", f"{_data(worse, weights)}. {_exonerated(weights)}.")
    return Decision("none", _none(weights, legs))


def beyond_scheme(leg: SplitLeg) -> bool:
    """Whether weights lose more than plain rounding in their own schemes explains, beyond the interval.

    Both are measured on the same windows: a difference taken window by window has its own, narrower interval.
    """
    if leg.kl is None:
        return False
    if leg.excess_kl is not None:
        return leg.kl.value > LEAST_KL and leg.excess_kl.low > 0
    return leg.kl.low > max(EXPLAINED_FACTOR * (leg.explained_kl or 0.0), LEAST_KL)


def beyond_floor(leg: SplitLeg) -> bool:
    """Whether an engine departs from reference mathematics by more than its noise, beyond the interval."""
    return leg.mean_difference is not None and leg.mean_difference.low > _allowed_departure(leg)


def beyond_text(leg: SplitLeg, text: SplitLeg) -> bool:
    """Whether prompts lose more than the text, intervals apart and by a factor."""
    if leg.kl is None or text.kl is None:
        return False
    larger = leg.kl.value > max(DATA_FACTOR * text.kl.value, LEAST_KL)
    return larger and leg.kl.low > text.kl.high


def _allowed_departure(leg: SplitLeg) -> float:
    return max(RUNTIME_FACTOR * (leg.noise_floor or 0.0), LEAST_DIFFERENCE)


def _departure(leg: SplitLeg) -> float:
    return leg.mean_difference.value if leg.mean_difference is not None else 0.0


def _weights(leg: SplitLeg) -> str:
    explained = leg.explained_kl or 0.0
    against = (
        f"plain rounding in the same schemes loses {_number(explained)}"
        if explained > 0
        else "its storage explains no loss"
    )
    return f"the weights alone, in reference mathematics, lose KL {_interval(leg.kl)} nats a token; {against}"


def _exonerated(leg: SplitLeg) -> str:
    return f"The weights are not to blame: {_weights(leg).removeprefix('the weights alone, ')}"


def _runtime(leg: SplitLeg, guards: Sequence[GuardFinding]) -> str:
    """One engine's departure; for the file's own settings, which they are."""
    settings = next((g for g in guards if g.check == SETTINGS and not g.holds), None)
    ours = leg.engine.startswith("quantriage")
    why = f"; settings that differ: {settings.evidence}" if settings is not None and ours else ""
    kl = f", KL to the reference {_interval(leg.kl)}" if leg.kl is not None else ""
    return (
        f"{leg.label} ({leg.engine}) changes the text's log-probabilities by "
        f"{_interval(leg.mean_difference)} nats a token in the mean, "
        f"{_number(leg.largest_difference or 0.0)} at most, where "
        f"{_number(_allowed_departure(leg))} is within noise{kl}{why}"
    )


def _data(leg: SplitLeg, text: SplitLeg) -> str:
    rounding = ""
    if leg.explained_kl and text.explained_kl:
        ratio = leg.explained_kl / text.explained_kl
        reason = (
            "these prompts are harder for these bits"
            if ratio >= DATA_FACTOR
            else "the calibration text did not stand for these prompts"
        )
        rounding = f"; plain rounding, which no data guides, loses {ratio:.1f} times as much there: {reason}"
    return (
        f"On {leg.label} the candidate loses KL {_interval(leg.kl)} nats a token, on the text "
        f"{_interval(text.kl)}{rounding}"
    )


def _none(weights: SplitLeg, legs: Sequence[SplitLeg]) -> str:
    """Nothing beyond what its bits cost; and what was not looked at."""
    engines = sorted({leg.engine for leg in legs if leg.part == "runtime"})
    prompts = [leg for leg in legs if leg.part == "data"]
    lost = _weights(weights).removeprefix("the weights alone, in reference mathematics, ")
    if weights.kl is not None and weights.kl.high <= LEAST_KL:
        lost = f"lost nothing that matters (KL {_interval(weights.kl)} nats a token)"
        first = f"The candidate {lost}"
    else:
        first = f"Nothing is wrong beyond what the bits cost: the weights {lost}"
    ran = f"{', '.join(engines)} runs them as they are" if engines else "no engine was run"
    asked = "other prompts lose no more" if prompts else "no prompts were given"
    return f"{first}; {ran}; {asked}."


def _interval(value: Interval | None) -> str:
    if value is None:
        return "unknown"
    return f"{_number(value.value)} [{_number(value.low)}, {_number(value.high)}]"


def _number(value: float) -> str:
    return f"{value:.3g}"
