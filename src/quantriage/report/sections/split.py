"""Weights, runtime or data: the same candidate evaluated in several ways, side by side.

The guards stand first: figures from other tokens or another template are not evidence of anything.
"""

from dataclasses import dataclass

from quantriage.records.diagnosis import Split, SplitLeg
from quantriage.report.chart import Chart, View
from quantriage.report.legs_chart import legs_figure
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.wording import listed, number, percent, plural, signed, span

_BADGES = {
    "weights": "The weights carry it",
    "runtime": "The runtime carries it",
    "data": "The text carries it",
    "none": "Nothing is lost",
    "not comparable": "Not comparable",
}


@dataclass(frozen=True)
class GuardRow:
    """A condition, whether it holds, and what was seen."""

    check: str
    holds: bool
    evidence: str


@dataclass(frozen=True)
class LegRow:
    """One way of evaluating the candidate; figures an engine does not give are a dash."""

    label: str
    part: str
    engine: str
    kl: str
    kl_between: str
    shift: str
    shift_between: str
    largest: str
    noise: str
    tokens: str


@dataclass(frozen=True)
class SplitContent:
    """The sentence, the guards and the legs."""

    badge: str
    state: str
    sentence: str
    guards: tuple[GuardRow, ...]
    guards_caption: str
    legs: tuple[LegRow, ...]


def build(records: RunRecords) -> Section | None:
    """From the split; left out without."""
    found = records.split
    if found is None:
        return None
    content = SplitContent(
        badge=_BADGES[found.carrier],
        state="proven"
        if found.carrier == "none"
        else "open"
        if found.carrier == "not comparable"
        else "blamed",
        sentence=found.sentence,
        guards=tuple(GuardRow(g.check, g.holds, g.evidence) for g in found.guards),
        guards_caption=_guards_caption(found),
        legs=tuple(_leg(leg) for leg in found.legs),
    )
    return Section("split", "Weights, runtime or data", "", content, _charts(found))


def _guards_caption(found: Split) -> str:
    if not found.guards:
        return "No condition was checked, so take the comparison with care."
    broken = [guard.check for guard in found.guards if not guard.holds]
    if not broken:
        return f"All {plural(len(found.guards), 'condition')} hold, so the legs below may be compared."
    verb = "does" if len(broken) == 1 else "do"
    return (
        f"{len(broken)} of {plural(len(found.guards), 'condition')} {verb} not hold ({listed(broken)}): mend "
        "that first, for until then the legs below differ in more than one thing."
    )


def _leg(leg: SplitLeg) -> LegRow:
    return LegRow(
        label=leg.label,
        part=leg.part,
        engine=leg.engine,
        kl="–" if leg.kl is None else number(leg.kl.value),
        kl_between="" if leg.kl is None else span(leg.kl),
        shift="–" if leg.nll_shift is None else signed(leg.nll_shift.value),
        shift_between=""
        if leg.nll_shift is None
        else f"{signed(leg.nll_shift.low)} to {signed(leg.nll_shift.high)}",
        largest="–" if leg.largest_difference is None else number(leg.largest_difference),
        noise="–" if leg.noise_floor is None else number(leg.noise_floor),
        tokens=f"{leg.tokens:,}",
    )


def _charts(found: Split) -> tuple[Chart, ...]:
    views = []
    divergences = [(leg, leg.kl) for leg in found.legs if leg.kl is not None]
    shifts = [(leg, leg.nll_shift) for leg in found.legs if leg.nll_shift is not None]
    if divergences:
        drawn = legs_figure(divergences, "KL to the reference, nats per token", floors=True)
        views.append(View("KL", kl_caption(found), drawn))
    if shifts:
        drawn = legs_figure(shifts, "change of −log p(text), nats per token", floors=False)
        views.append(View("Loss of the text", shift_caption(found), drawn))
    return (Chart("split-legs", "One candidate, evaluated in several ways", tuple(views)),) if views else ()


def kl_caption(found: Split) -> str:
    """What the weights lose in reference math, and what each other way adds to it."""
    legs = [leg for leg in found.legs if leg.kl is not None]
    base = next((leg for leg in legs if leg.part == "weights"), None)
    if base is None or base.kl is None:
        most = max(legs, key=lambda leg: leg.kl.value if leg.kl else 0.0)
        worst = number(most.kl.value if most.kl else 0.0)
        return f"{most.label} loses most, KL {worst}; no leg shows the weights alone."
    said = [f"The weights alone, in reference math, lose KL {number(base.kl.value)}{_over_noise(base)}"]
    said += [_beside(leg, base) for leg in legs if leg is not base]
    without = [leg.label for leg in found.legs if leg.kl is None]
    if without:
        gives = "gives" if len(without) == 1 else "give"
        said.append(f"{listed(without)} {gives} no KL, only probabilities of the text")
    grey = " The grey bars are the noise floors." if any(leg.noise_floor for leg in legs) else ""
    return f"{'; '.join(said)}.{grey}"


def _over_noise(leg: SplitLeg) -> str:
    if not leg.noise_floor or leg.kl is None:
        return ""
    if leg.kl.value <= leg.noise_floor:
        return f", no more than the noise floor of {number(leg.noise_floor)}"
    return f", {number(leg.kl.value / leg.noise_floor)} times the noise floor"


def _beside(leg: SplitLeg, base: SplitLeg) -> str:
    """One leg against the first, by their intervals."""
    if leg.kl is None or base.kl is None:
        return ""
    said = f"{leg.label}: {number(leg.kl.value)}"
    if leg.kl.low <= base.kl.high and base.kl.low <= leg.kl.high:
        return f"{said}, the same within the intervals"
    change = leg.kl.value - base.kl.value
    share = f" ({percent(abs(change) / base.kl.value)})" if base.kl.value > 0 else ""
    return f"{said}, {number(abs(change))} {'more' if change > 0 else 'less'}{share}"


def shift_caption(found: Split) -> str:
    """Which legs make the text less likely for certain, and how far they part at a single token."""
    legs = [(leg, leg.nll_shift) for leg in found.legs if leg.nll_shift is not None]
    worse = [leg.label for leg, shift in legs if shift.low > 0]
    most, value = max(((leg.label, shift.value) for leg, shift in legs), key=lambda item: item[1])
    text = f"No leg makes the text less likely for certain; most does {most}, {signed(value)} nats per token."
    if worse:
        who = f"{len(worse)} of {plural(len(legs), 'leg')} {'makes' if len(worse) == 1 else 'make'}"
        who = f"All {len(legs)} legs make" if len(worse) == len(legs) > 1 else who
        text = f"{who} the text less likely for certain, most {most} by {number(value)} nats per token."
    far = max((leg for leg, _ in legs), key=lambda leg: leg.largest_difference or 0.0)
    if not far.largest_difference:
        return text
    return f"{text} At one token {far.label} parts from the first leg by {number(far.largest_difference)}."
