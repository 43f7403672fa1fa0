"""Where the candidate's KL comes from, and whether it had to: a map of all units and a table of the worst.

The map carries a mark on each unit that was judged at fault, so that colour alone need not tell a layer that
is hard from one that was done badly. Units without a block (embedding, last norm, head) get a table instead.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantriage.records.diagnosis import Attribution, Judgement, UnitAttribution
from quantriage.report.chart import Chart, View
from quantriage.report.concentration import concentration
from quantriage.report.layer_map import Grid, Place, bits_map, lay_out, loss_map
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.sections.attribution_rows import UnitRow, kl_of, rank, row_of
from quantriage.report.sections.attribution_slack import slack_chart
from quantriage.report.site_names import column_of, short_sites
from quantriage.report.unit_places import UnitPlace, placed
from quantriage.report.wording import duration, median, number, percent, plural, tooltip

_WORST = 20
_FAULTY = 40
_MARKS: Mapping[Judgement, str] = {"damaged": "✕", "badly done": "▲", "hard": "•", "fine": ""}
_GRAVITY: tuple[Judgement, ...] = ("damaged", "badly done", "hard", "fine")
_LOST_LITTLE = 0.8  # additivity outside these bounds is worth a word
_ADDS_UP = 1.25


@dataclass(frozen=True)
class AttributionContent:
    """Sentences on how it was measured, the worst units, and those the map has no place for."""

    measured: tuple[str, ...]
    worst: tuple[UnitRow, ...]
    worst_caption: str
    others: tuple[UnitRow, ...]
    others_caption: str


def build(records: RunRecords) -> Section | None:
    """From the attribution; left out without."""
    found = records.attribution
    if found is None or not found.units:
        return None
    places = _touched(found.units, placed(found.units, records.site_by_name))
    worst = _worst(found.units)
    charts = [_map_chart(found, lay_out(places))] if places else []
    charts += slack_chart(found.units, short_sites(places))
    others = _others(records, found)
    content = AttributionContent(
        measured=_measured(found),
        worst=tuple(row_of(unit) for unit in worst),
        worst_caption=_worst_caption(found, worst),
        others=tuple(row_of(unit) for unit in others if unit.relative_error > 0),
        others_caption=_others_caption(others),
    )
    lead = (
        f"KL {number(found.total_kl)} nats per token in all, shared out over "
        f"{plural(len(found.units), 'unit')}: what the reference loses with one of them taken from the "
        "candidate."
    )
    charts = [chart for chart in charts if chart.views]
    return Section("attribution", "Where the loss comes from", lead, content, tuple(charts))


def _touched(units: Sequence[UnitAttribution], places: Sequence[UnitPlace]) -> list[UnitPlace]:
    """Without the columns (mostly of norms) that are as in the reference in every block."""
    changed = {u.unit for u in units if u.relative_error > 0 or (kl_of(u) or 0.0) > 0}
    columns = {column_of(place) for place in places if place.name in changed}
    return [place for place in places if column_of(place) in columns]


def _worst(units: Sequence[UnitAttribution]) -> list[UnitAttribution]:
    """The costliest units, and those judged at fault however little they cost."""
    ranked = rank(units)
    faulty = [u for u in ranked[_WORST:] if u.judgement in ("damaged", "badly done")]
    return ranked[:_WORST] + faulty[: _FAULTY - _WORST]


def _measured(found: Attribution) -> tuple[str, ...]:
    swapped = sum(unit.swap_kl is not None for unit in found.units)
    said = [
        f"{swapped:,} of {plural(len(found.units), 'unit')} swapped for real, the others predicted from "
        f"their weight error: {number(found.forwards)} forward passes in {duration(found.seconds)}, "
        f"where swapping one by one takes {number(found.forwards_one_by_one)}."
    ]
    unknown = sum(kl_of(unit) is None for unit in found.units)
    if unknown:
        said.append(f"{plural(unknown, 'unit')} could be neither swapped nor predicted.")
    if found.truncated:
        said.append(
            f"The time budget of {duration(found.budget_seconds)} ended the swaps early: "
            f"{len(found.units) - swapped - unknown:,} units rest on their prediction alone."
        )
    if found.additivity is not None:
        said.append(f"The units' KL sum to {number(found.additivity)} times the total: {_adds_up(found)}.")
    return tuple(said)


def _adds_up(found: Attribution) -> str:
    ratio = found.additivity or 0.0
    if ratio < _LOST_LITTLE:
        return "together they lose more than one by one, so mending the worst gains more than its own share"
    if ratio > _ADDS_UP:
        return "together they lose less than one by one, so mending one alone gains less than its share"
    return "the losses add up, so each unit's share may be taken at its word"


def _map_chart(found: Attribution, grid: Grid) -> Chart:
    units = {unit.unit: unit for unit in found.units}
    tips = _tips(grid, units)
    views = _kl_views(found, grid, tips)
    views += _ratio_views(grid, units, tips)
    views += _bits_views(grid, units, tips)
    return Chart("attribution-map", "", tuple(views))


def _kl_views(found: Attribution, grid: Grid, tips: Mapping[Place, str]) -> list[View]:
    values = {u.unit: kl for u in found.units if (kl := kl_of(u)) is not None}
    column = {place.name: cell.column for cell in grid.at.values() for place in cell.sites}
    column |= {name: name for name in values if name not in column}
    said = concentration(column, values, "units' KL", "unit")
    if said is None:
        return [View("KL", "No unit loses anything.", loss_map(grid, {}, tips, "KL"))]
    gravest = _gravest(grid, {u.unit: u.judgement for u in found.units})
    used = set(gravest.values())
    legend = ", ".join(f"{_MARKS[j]} {j}" for j in _GRAVITY[:3] if j in used)
    caption = f"{said} Marked: {legend}." if legend else f"{said} No unit is at fault."
    marks = {place: _MARKS[judgement] for place, judgement in gravest.items()}
    return [View("KL", caption, loss_map(grid, values, tips, "KL of the unit alone", marks))]


def _gravest(grid: Grid, judgements: Mapping[str, Judgement]) -> dict[Place, Judgement]:
    return {
        place: min((judgements[s.name] for s in cell.sites), key=_GRAVITY.index)
        for place, cell in grid.at.items()
    }


def _inside(grid: Grid, units: Mapping[str, UnitAttribution]) -> list[UnitAttribution]:
    """The units that the map shows."""
    return [units[place.name] for cell in grid.at.values() for place in cell.sites]


def _ratio_views(grid: Grid, units: Mapping[str, UnitAttribution], tips: Mapping[Place, str]) -> list[View]:
    inside = _inside(grid, units)
    nearest = {
        u.unit: u.relative_error / u.nearest_error for u in inside if u.nearest_error and u.relative_error > 0
    }
    noise = {u.unit: u.noise_ratio for u in inside if u.noise_ratio}
    every = (
        ("Error against rounding", nearest, "weight error over plain rounding's", "plain rounding"),
        ("Error against noise", noise, "predicted KL over random errors'", "random errors of the same size"),
    )
    return [
        View(label, _ratio_caption(values, against), loss_map(grid, values, tips, title))
        for label, values, title, against in every
        if values
    ]


def _ratio_caption(values: Mapping[str, float], against: str) -> str:
    top = max(values, key=lambda name: values[name])
    middle = median(values.values())
    text = f"Against {against}, the median unit stands at {number(middle)} times"
    if values[top] < 2 * max(middle, 1.0):
        return f"{text} and none far above it, the highest at {number(values[top])}: {top}."
    far = sum(value >= 2 * max(middle, 1.0) for value in values.values())
    stand = "1 unit stands" if far == 1 else f"{far:,} units stand"
    return f"{text}; {stand} at twice that or more, the highest at {number(values[top])}: {top}."


def _bits_views(grid: Grid, units: Mapping[str, UnitAttribution], tips: Mapping[Place, str]) -> list[View]:
    bits = {u.unit: u.bits for u in _inside(grid, units) if u.bits > 0}
    if not bits:
        return []
    layouts = Counter(units[name].layout for name in bits)
    usual, count = layouts.most_common(1)[0]
    caption = f"{percent(count / len(bits))} of the units in blocks are stored as {usual}"
    if len(layouts) > 1:
        rest = ", ".join(f"{n:,} as {layout}" for layout, n in layouts.most_common(5)[1:])
        caption += f"; {rest}"
        caption += " and others" if len(layouts) > 5 else ""
    return [View("Bits", f"{caption}.", bits_map(grid, bits, tips))]


def _tips(grid: Grid, units: Mapping[str, UnitAttribution]) -> dict[Place, str]:
    tips = {}
    for place, cell in grid.at.items():
        first = rank([units[s.name] for s in cell.sites])[0]
        lines = (
            [f"{len(cell.sites)} experts, block {cell.block}; worst of them:"] if len(cell.sites) > 1 else []
        )
        row = row_of(first)
        lines += [
            first.unit,
            f"stored as {row.stored}",
            f"KL {row.swapped} swapped, {row.predicted} predicted",
        ]
        lines += [f"weight error {row.error}, plain rounding's {row.nearest}"]
        lines += [first.judgement + (f": {first.reason}" if first.reason else "")]
        tips[place] = tooltip(lines)
    return tips


def _worst_caption(found: Attribution, worst: Sequence[UnitAttribution]) -> str:
    counts = Counter(unit.judgement for unit in found.units)
    said = ", ".join(f"{counts[j]:,} {j}" for j in _GRAVITY if counts[j])
    first = worst[0]
    kl = kl_of(first)
    if not kl:
        return f"Judged: {said}."
    share = f", {percent(kl / found.total_kl)} of the total" if found.total_kl > 0 else ""
    return f"{first.unit} costs most, {number(kl)}{share}. Judged: {said}."


def _others(records: RunRecords, found: Attribution) -> list[UnitAttribution]:
    """Units outside the blocks, and those in them that are not weights of products where sites are known."""
    known = records.site_by_name
    return rank([u for u in found.units if u.block is None or (known and u.unit not in known)])


def _others_caption(others: Sequence[UnitAttribution]) -> str:
    if not others:
        return ""
    changed = [unit for unit in others if unit.relative_error > 0]
    if not changed:
        return f"All {len(others):,} are as in the reference."
    same = len(others) - len(changed)
    text = f"{plural(len(changed), 'unit')} of {len(others):,} {'differs' if len(changed) == 1 else 'differ'}"
    kl = kl_of(changed[0])
    text += f", {changed[0].unit} most, KL {number(kl)}" if kl else ""
    return (
        f"{text}; the other {same:,} {'is' if same == 1 else 'are'} as in the reference."
        if same
        else f"{text}."
    )
