"""The path of the search for the culprits: how many units each evaluation tried, and what came of it.

Two panels over one count of evaluations: the criterion's figure against its threshold above, the number of
units under test below, because a search that shrinks steadily and one that meets an interaction (sets that
are good apart and bad together, so that it has to widen again) differ in the second alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from quantriage.records.diagnosis import Bisection, BisectStep
from quantriage.report.bisect_chart import path_figure
from quantriage.report.chart import Chart, View
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.sections.attribution_rows import kl_of
from quantriage.report.tile import Tile
from quantriage.report.wording import listed, number, plural

_THRESHOLD = re.compile(r"[<>]=?\s*(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*$")
_NAMED = 3
_CULPRITS = 100
_STEPS = 400


@dataclass(frozen=True)
class CulpritRow:
    """A culprit, with what attribution says of it if it was run."""

    unit: str
    said: str


@dataclass(frozen=True)
class StepRow:
    """One evaluation."""

    number: int
    count: str
    units: str
    value: str
    bad: bool


@dataclass(frozen=True)
class BisectionContent:
    """The culprits, the three figures that make them so, and every step."""

    culprits: tuple[CulpritRow, ...]
    culprits_beyond: int
    culprits_caption: str
    tiles: tuple[Tile, ...]
    steps: tuple[StepRow, ...]
    steps_title: str


def build(records: RunRecords) -> Section | None:
    """From the bisection; left out without."""
    found = records.bisection
    if found is None:
        return None
    threshold = threshold_of(found.criterion)
    content = BisectionContent(
        culprits=tuple(_culprit(records, unit) for unit in found.culprits[:_CULPRITS]),
        culprits_beyond=max(0, len(found.culprits) - _CULPRITS),
        culprits_caption=_explained(found, threshold),
        tiles=_tiles(found),
        steps=tuple(_step(step) for step in found.steps[:_STEPS]),
        steps_title=f"{'All' if len(found.steps) <= _STEPS else f'The first {_STEPS} of'} "
        f"{plural(len(found.steps), 'evaluation')}",
    )
    charts: tuple[Chart, ...] = ()
    if found.steps:
        view = View("", path_caption(found), path_figure(found.steps, threshold))
        charts = (Chart("bisect-path", "The path of the search", (view,)),)
    return Section("bisection", "Bisect", _lead(found), content, charts)


def threshold_of(criterion: str) -> float | None:
    """The figure behind the comparison: 0.05 of "KL > 0.05"; None for a command."""
    found = None if criterion.startswith("command") else _THRESHOLD.search(criterion)
    return float(found[1]) if found else None


def _lead(found: Bisection) -> str:
    return (
        f"Searched for the fewest units of the candidate that are bad on their own; bad is {found.criterion}."
    )


def _culprit(records: RunRecords, unit: str) -> CulpritRow:
    units = records.attribution.units if records.attribution else ()
    known = next((u for u in units if u.unit == unit), None)
    if known is None:
        return CulpritRow(unit, "")
    kl = kl_of(known)
    said = f"KL {number(kl)} of its own, {known.judgement}" if kl is not None else known.judgement
    return CulpritRow(unit, f"{said}{f': {known.reason}' if known.reason else ''}")


def _explained(found: Bisection, threshold: float | None) -> str:
    if not found.culprits:
        return "No set of units is bad by this criterion, so there is nothing to blame."
    several = len(found.culprits) > 1
    with_them = f"{plural(len(found.culprits), 'unit')} {'are' if several else 'is'} bad alone"
    if several:
        with_them = f"{len(found.culprits):,} units are bad together"
    without, alone = found.value_without, found.value_culprits
    if without is None or threshold is None:
        return (
            f"{with_them}; what is left without {'them' if several else 'it'} was not measured by a figure."
        )
    if without <= threshold:
        return (
            f"{with_them}, and without {'them' if several else 'it'} the candidate is good: "
            f"{number(without)} where bad begins at {number(threshold)}. "
            f"{'They are' if several else 'It is'} what to mend."
        )
    left = f" ({number(alone)} of their own)" if alone is not None else ""
    return (
        f"{with_them}{left}, but without {'them' if several else 'it'} the candidate is still bad, "
        f"{number(without)} where bad begins at {number(threshold)}: there is more than one such set."
    )


def _tiles(found: Bisection) -> tuple[Tile, ...]:
    every = (
        ("with all units from the candidate", found.value_all),
        ("with only the culprits", found.value_culprits),
        ("with all but the culprits", found.value_without),
    )
    return tuple(
        Tile(name, number(value), f"bad is {found.criterion}") for name, value in every if value is not None
    )


def path_caption(found: Bisection) -> str:
    """How far the search came and at what price."""
    most = max(len(step.units) for step in found.steps)
    text = (
        f"{plural(found.evaluations, 'evaluation')} narrowed {plural(most, 'unit')} to "
        f"{len(found.culprits):,}, where trying one by one takes {found.one_by_one:,}"
    )
    if found.evaluations and found.one_by_one > found.evaluations:
        text += f", {number(found.one_by_one / found.evaluations)} times as many"
    widened = _widened(found.steps)
    if widened:
        return (
            f"{text}. Both halves were good {'once' if widened == 1 else f'{widened} times'} where their "
            "union was bad: it takes some units of each."
        )
    return f"{text}."


def _widened(steps: Sequence[BisectStep]) -> int:
    """How often two sets in a row were good whose union had been found bad."""
    bad: set[frozenset[str]] = set()
    count = 0
    previous: BisectStep | None = None
    for step in steps:
        units = frozenset(step.units)
        if step.bad:
            bad.add(units)
        elif previous is not None and not previous.bad and units | frozenset(previous.units) in bad:
            count += 1
        previous = step
    return count


def _step(step: BisectStep) -> StepRow:
    return StepRow(
        number=step.number,
        count=f"{len(step.units):,}",
        units=listed(step.units, _NAMED) or "none",
        value="–" if step.value is None else number(step.value),
        bad=step.bad,
    )
