"""From the records of a lint, an attribution and a split to one verdict and its causes.

A pure function of records, so that every conclusion can be recomputed and argued with. The lint knows causes
but not costs, the attribution costs but only degrees of badness: a lint finding that names a unit explains
that unit's loss, and only what no finding explains is left to the attribution's word. An error that costs
nothing on the text is a cause all the same: an expert that the text never reached costs nothing either.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from quantriage.diagnose.judgement import worse_than_plain
from quantriage.diagnose.split import LEAST_KL
from quantriage.records.diagnosis import (
    Attribution,
    CandidateDiagnosis,
    Cause,
    Lint,
    LintFinding,
    Split,
    UnitAttribution,
)

Verdict = Literal["healthy", "damaged", "badly quantized", "at the limit of its bits", "not comparable"]

NOTICEABLE_KL = 0.05
"""Nats above which a loss that no unit stands out in is still called a limit of the bits, not health: plain
8-bit rounding stays below 0.001, 4 bits with good methods at about this."""
OTHER_MODEL = "wrong-base"
"""Every other difference to the reference would be a difference between two models."""
UNMEASURABLE = frozenset(
    {
        *(OTHER_MODEL, "unreadable-checkpoint", "unreadable-weight"),
        *("missing-tensor", "missing-block", "shape-mismatch", "head-missing"),
    }
)
"""Lint errors after which the candidate's weights cannot stand in for the reference's one by one."""

_ADVICE = {
    "damaged": "quantize it again from the reference (`quantriage repair`)",
    "badly done": "quantize it again with error feedback on calibration text (`quantriage repair`)",
    "hard": "give it more bits (`quantriage repair --extra-bpw`), or accept the loss",
}
_BY_RUNTIME = "change the engine's option or version, or serve with another engine; the file needs no repair"
_BY_DATA = "calibrate on text like the prompts that lose, and quantize again"
_NAMED = 3  # units named in a sentence
_FAULT, _HARM, _BETTER, _WARNING, _HARD = range(5)
"""Tiers of causes. A rounding worse than plain rounding is a mistake in one place. It stands before one
that could be better, which mostly is a choice of method for the whole file, however much more that costs."""


@dataclass(frozen=True)
class _Ranked:
    """A cause and where it stands: see the tiers."""

    tier: int
    cause: Cause

    @property
    def key(self) -> tuple[int, float]:
        """Costliest first; a fault that cannot be measured, such as NaN, before those that can."""
        unknown = float("inf") if self.tier == _FAULT else 0.0
        return self.tier, -(self.cause.kl if self.cause.kl is not None else unknown)


def conclude(
    lint: Lint, attribution: Attribution | None = None, split: Split | None = None, unmeasured: str = ""
) -> CandidateDiagnosis:
    """Verdict and causes. unmeasured: why there is no attribution, for the sentence."""
    units = {unit.unit: unit for unit in attribution.units} if attribution is not None else {}
    other = [one for one in lint.findings if one.check == OTHER_MODEL]
    ranked = _from_lint(other or [one for one in lint.findings if one.severity != "info"], units)
    if attribution is not None and not other:
        ranked += _from_attribution(attribution, _explained(lint.findings))
    if split is not None and not other:
        ranked += _from_split(split)
    causes = tuple(one.cause for one in sorted(ranked, key=lambda one: one.key))
    verdict = _verdict(lint, attribution, split)
    return CandidateDiagnosis(
        reference=lint.reference or "",
        candidate=lint.candidate,
        layout=lint.layout,
        verdict=verdict,
        sentence=_sentence(verdict, causes, attribution, split, unmeasured),
        causes=causes,
    )


def kl_of(unit: UnitAttribution) -> float | None:
    """Measured KL of a unit, else predicted."""
    return unit.swap_kl if unit.swap_kl is not None else unit.predicted_kl


def _sum_kl(units: Iterable[UnitAttribution]) -> float | None:
    known = [kl for unit in units if (kl := kl_of(unit)) is not None]
    return sum(known) if known else None


def _from_lint(findings: Sequence[LintFinding], units: Mapping[str, UnitAttribution]) -> list[_Ranked]:
    """One cause for each check and severity, with the KL of all units it names."""
    groups: dict[tuple[str, str], list[LintFinding]] = {}
    for one in findings:
        groups.setdefault((one.check, one.severity), []).append(one)
    found = []
    for (check, severity), members in groups.items():
        sites = tuple(dict.fromkeys(_module(one.site) for one in members if one.site is not None))
        first = members[0]
        cause = Cause(
            code=check,
            units=sites,
            kl=_sum_kl(unit for name, unit in units.items() if _named(name, sites)),
            sentence=f"{_where(sites)}{first.evidence.rstrip('.')}. {first.cause}",
            action=first.action,
        )
        explained = [unit for name, unit in units.items() if _named(name, sites)]
        found.append(_Ranked(_tier(severity, explained), cause))
    return found


def _tier(severity: str, explained: Collection[UnitAttribution]) -> int:
    """A warning stands where the attribution's word puts the units that it explains."""
    judged = {unit.judgement for unit in explained}
    if severity == "error" or "damaged" in judged:
        return _FAULT
    if any(_harmed(unit) for unit in explained):
        return _HARM
    return _BETTER if "badly done" in judged else _WARNING


def _harmed(unit: UnitAttribution) -> bool:
    return worse_than_plain(unit.relative_error, unit.nearest_error, unit.swap_kl, unit.plain_kl)


def _from_attribution(attribution: Attribution, explained: Sequence[str]) -> list[_Ranked]:
    """Causes of the units that no finding explains: each damaged one by itself, the others by tier."""
    tiers: dict[int, list[UnitAttribution]] = {}
    for unit in attribution.units:
        if unit.judgement == "fine" or not _counts(unit, attribution) or _named(unit.unit, explained):
            continue
        worse = _HARM if _harmed(unit) else _BETTER
        tier = {"damaged": _FAULT, "badly done": worse, "hard": _HARD}[unit.judgement]
        tiers.setdefault(tier, []).append(unit)
    found = []
    for tier, units in tiers.items():
        for members in [[unit] for unit in units] if tier == _FAULT else [units]:
            found.append(_Ranked(tier, _judged(members[0].judgement, members)))
    return found


def _judged(word: str, units: Sequence[UnitAttribution]) -> Cause:
    names = tuple(unit.unit for unit in units)
    return Cause(
        code=word,
        units=names,
        kl=_sum_kl(units),
        sentence=f"{_where(names)}{units[0].reason}.",
        action=_ADVICE[word],
    )


def _counts(unit: UnitAttribution, attribution: Attribution) -> bool:
    """Damage always; a share of the loss only where there is a loss."""
    return unit.judgement == "damaged" or attribution.total_kl > LEAST_KL


def _from_split(split: Split) -> list[_Ranked]:
    if split.carrier == "runtime":
        legs = [leg.kl.value for leg in split.legs if leg.part == "runtime" and leg.kl is not None]
        cause = Cause(
            code="runtime",
            units=(),
            kl=max(legs, default=None),
            sentence=split.sentence,
            action=_BY_RUNTIME,
        )
        return [_Ranked(_FAULT, cause)]
    if split.carrier == "data":
        cause = Cause(code="data", units=(), kl=None, sentence=split.sentence, action=_BY_DATA)
        return [_Ranked(_HARM, cause)]
    return []


def _explained(findings: Iterable[LintFinding]) -> tuple[str, ...]:
    """What lint findings name; an info explains nothing."""
    return tuple(_module(one.site) for one in findings if one.site is not None and one.severity != "info")


def _module(site: str) -> str:
    """Units are named by module, some findings by tensor."""
    return site.removesuffix(".weight").removesuffix(".bias")


def _named(unit: str, sites: Iterable[str]) -> bool:
    """Whether one of `sites` is the unit, or the block it lies in."""
    return any(unit == site or unit.startswith(f"{site}.") for site in sites)


def _where(names: Sequence[str]) -> str:
    if not names:
        return ""
    listed = ", ".join(names[:_NAMED])
    if len(names) <= _NAMED:
        return f"{listed}: "
    return f"{listed} and {len(names) - _NAMED} more; the first: "


def _verdict(lint: Lint, attribution: Attribution | None, split: Split | None) -> Verdict:
    errors = [one for one in lint.findings if one.severity == "error"]
    if any(one.check == OTHER_MODEL for one in errors):
        return "not comparable"
    words = (
        {unit.judgement for unit in attribution.units if _counts(unit, attribution)}
        if attribution is not None
        else set()
    )
    if errors or "damaged" in words:
        return "damaged"
    if attribution is None or (split is not None and split.carrier == "not comparable"):
        return "not comparable"
    if "badly done" in words:
        return "badly quantized"
    if "hard" in words or attribution.total_kl > NOTICEABLE_KL:
        return "at the limit of its bits"
    return "healthy"


def _sentence(
    verdict: Verdict,
    causes: Sequence[Cause],
    attribution: Attribution | None,
    split: Split | None,
    unmeasured: str,
) -> str:
    lost = f"it loses KL {attribution.total_kl:.3g} nats a token" if attribution is not None else ""
    if verdict == "not comparable":
        why = causes[0].sentence if causes else (split.sentence if split is not None else unmeasured)
        return f"The two cannot be compared. {why}"
    runtime = " The runtime carries a loss of its own." if any(c.code == "runtime" for c in causes) else ""
    if verdict == "damaged":
        head = _headline(causes)
        measured = f"; {lost}" if lost else f"; its loss was not measured: {unmeasured}"
        return f"The checkpoint is damaged: {head}{measured}.{runtime}"
    if verdict == "badly quantized":
        first = next((cause for cause in causes if cause.kl and cause.units), None)
        share = ""
        if first is not None and first.kl and attribution is not None and attribution.total_kl > 0:
            count = first.units[0] if len(first.units) == 1 else f"{len(first.units)} units"
            share = f", {min(1.0, first.kl / attribution.total_kl):.0%} of it in {count} ({first.code})"
        units = attribution.units if attribution is not None else ()
        worse = [unit.unit for unit in units if unit.judgement == "badly done" and _harmed(unit)]
        what = "the rounding could be better"
        if worse:
            what = f"{worse[0] if len(worse) == 1 else f'{len(worse)} units'} would lose less rounded plainly"
        return f"Nothing is damaged, but {what}: {lost}{share}.{runtime}"
    if verdict == "at the limit of its bits":
        return f"The candidate does what its bits allow: {lost}; only more bits help.{runtime}"
    beside = [cause for cause in causes if cause.code not in ("runtime", "data")]
    count = "1 lesser finding does" if len(beside) == 1 else f"{len(beside)} lesser findings do"
    more = f"; {count} not show in it" if beside else ""
    return f"Nothing is wrong with the checkpoint: {lost}{more}.{runtime}"


def _headline(causes: Sequence[Cause]) -> str:
    first = causes[0]
    where = f" in {first.units[0]}" if first.units else ""
    count = f" and {len(first.units) - 1} more" if len(first.units) > 1 else ""
    return f"{first.code}{where}{count}"
