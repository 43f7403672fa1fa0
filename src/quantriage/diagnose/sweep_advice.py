"""What to do after a sweep: one setting, the reason in figures, and whether held-out text agrees.

Decided on selection text by paired differences: a setting is recommended over doing without the choice only
if the interval of the difference leaves out zero. Settings of different size are compared at equal size: what
costs bits has to beat the same bits spent on one more bit for a share of the weights (`kl_left`), which is
what a mix of widths buys without a look at which layers need it. Taking the least KL would always recommend
the smallest group; holding it against 4^bits would credit widths that no checkpoint has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quantriage.evaluate.intervals import mean_interval, perplexity_interval
from quantriage.records.sweep import Confirmation, SweepVariant, kl_left
from quantriage.records.types import Interval

Rule = Literal["size", "lowest", "cheapest"]


@dataclass(frozen=True)
class Advice:
    """The recommended variant, the one to hold it against on other text, and why."""

    recommended: str
    against: str
    reason: str


@dataclass(frozen=True)
class HeldOut:
    """One variant on held-out text: means by sequence, and its stored bits per weight."""

    label: str
    bits: float
    kl: tuple[float, ...]
    nll: tuple[float, ...]


def difference(first: Sequence[float], second: Sequence[float], factor: float = 1.0) -> Interval:
    """Mean of factor * first - second over sequences, with its interval."""
    return mean_interval([factor * a - b for a, b in zip(first, second, strict=True)])


def size_factor(bits: float, base_bits: float) -> float:
    """What KL at `bits` is to be multiplied by to stand for `base_bits`."""
    return 1 / kl_left(bits - base_bits)


def advise(variants: Sequence[SweepVariant], baseline: str, rule: Rule, contenders: frozenset[str]) -> Advice:
    """The recommendation among `contenders` (labels; the baseline is always one of them)."""
    base = next(v for v in variants if v.label == baseline)
    able = [v for v in variants if v.label in contenders or v is base]
    best = min(able, key=lambda v: (_score(v, rule), v is not base))
    if rule == "cheapest":
        best = _cheapest(able, best)
    others = [v for v in able if v.kl_sequences != base.kl_sequences] or [v for v in able if v is not base]
    if best is base or not _shown(best, base, rule):
        rival = best if best is not base else min(others, key=lambda v: _score(v, rule), default=base)
        return Advice(base.label, rival.label, _kept(base, rival, rule))
    return Advice(best.label, base.label, _reason(best, base, rule, able))


def confirm(recommended: HeldOut, against: HeldOut, rule: Rule) -> Confirmation:
    """Both on held-out text; the verdict is at equal size where the rule is."""
    plain = difference(recommended.kl, against.kl)
    factor = size_factor(recommended.bits, against.bits)
    equal = difference(recommended.kl, against.kl, factor)
    deciding = equal if rule == "size" else plain
    verdict: Literal["wins", "no difference shown", "loses"] = "no difference shown"
    if deciding.high < 0:
        verdict = "wins"
    elif deciding.low > 0:
        verdict = "loses"
    return Confirmation(
        recommended=recommended.label,
        against=against.label,
        recommended_kl=mean_interval(recommended.kl),
        against_kl=mean_interval(against.kl),
        recommended_perplexity=perplexity_interval(recommended.nll),
        against_perplexity=perplexity_interval(against.nll),
        difference=plain,
        difference_at_equal_size=equal,
        verdict=verdict,
    )


def _score(variant: SweepVariant, rule: Rule) -> float:
    return variant.kl_at_equal_size if rule == "size" else variant.kl.value


def _shown(best: SweepVariant, base: SweepVariant, rule: Rule) -> bool:
    """Whether the best is shown to be better than the baseline."""
    factor = size_factor(best.bits_per_weight, base.bits_per_weight) if rule == "size" else 1.0
    return difference(best.kl_sequences, base.kl_sequences, factor).high < 0


def _cheapest(able: Sequence[SweepVariant], best: SweepVariant) -> SweepVariant:
    """The fewest calibration tokens among those that are not shown to be worse than the best."""
    level = [v for v in able if difference(v.kl_sequences, best.kl_sequences).low <= 0]
    return min(level, key=lambda v: (v.calibration_tokens, v.kl.value))


def _kept(base: SweepVariant, rival: SweepVariant, rule: Rule) -> str:
    if rival is base:
        return f"{base.label} is the only setting that could be tried."
    found = difference(rival.kl_sequences, base.kl_sequences)
    text = (
        f"No setting is shown to be better than {base.label}: {rival.label} has KL {rival.kl.value:.4g} "
        f"against {base.kl.value:.4g}, paired difference {found.low:+.2g} to {found.high:+.2g}"
    )
    extra = rival.bits_per_weight - base.bits_per_weight
    if rule == "size" and extra:
        text += (
            f", for {extra:+.3f} bits per weight; spent on wider codes for some of the weights those would "
            f"take KL {base.kl.value:.4g} to about {base.kl.value * kl_left(extra):.4g}"
        )
    return f"{text}."


def _reason(best: SweepVariant, base: SweepVariant, rule: Rule, able: Sequence[SweepVariant]) -> str:
    found = difference(best.kl_sequences, base.kl_sequences)
    text = (
        f"{best.label} has KL {best.kl.value:.4g} where {base.label} has {base.kl.value:.4g}, "
        f"paired difference {found.low:+.2g} to {found.high:+.2g}"
    )
    if rule == "size":
        extra = best.bits_per_weight - base.bits_per_weight
        text += (
            f", for {extra:+.3f} bits per weight. The same bits spent on wider codes for some of the weights "
            f"would take {base.label} to about {base.kl.value * kl_left(extra):.4g}"
        )
    if rule == "cheapest":
        least = min(able, key=lambda v: v.kl.value)
        if least is best:
            text += "; every setting with fewer tokens is shown to be worse"
        else:
            text += (
                f". {least.label} has the least KL, {least.kl.value:.4g}, but is not shown to be better, and "
                f"takes {least.calibration_tokens / max(best.calibration_tokens, 1):.1f} times the tokens"
            )
    return f"{text}."
