"""What a repair changed, what it cost in bytes, and what it gained on the saved file."""

from dataclasses import dataclass

from quantriage.records.diagnosis import Repair, RepairedUnit
from quantriage.records.types import Interval
from quantriage.report.chart import ACCENT, MUTED, SERIES, Chart, Figure, Trace, View, axis, figure, points
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.tile import Tile
from quantriage.report.wording import number, percent, plural, signed, size, span, tooltip

_ROWS = 200


@dataclass(frozen=True)
class RepairedRow:
    """One unit that was replaced."""

    unit: str
    change: str
    added: str
    before: str
    after: str


@dataclass(frozen=True)
class RepairContent:
    """The figures large, then every unit."""

    tiles: tuple[Tile, ...]
    rows: tuple[RepairedRow, ...]
    beyond: int
    caption: str


def build(records: RunRecords) -> Section | None:
    """From the repair; left out without."""
    found = records.repair
    if found is None:
        return None
    ranked = sorted(found.units, key=lambda u: -((u.predicted_before or 0.0) - (u.predicted_after or 0.0)))
    content = RepairContent(
        tiles=_tiles(found),
        rows=tuple(_row(unit) for unit in ranked[:_ROWS]),
        beyond=max(0, len(ranked) - _ROWS),
        caption=_caption(found),
    )
    lead = f"Saved as {found.out} and measured there, not in memory."
    charts = (Chart("repair-kl", "", (View("", gain(found), _picture(found)),)),)
    return Section("repair", "Repair", lead, content, charts)


def gain(found: Repair) -> str:
    """KL before and after in one sentence, and whether the change is shown."""
    before, after = found.kl_before, found.kl_after
    text = f"KL {number(before.value)} before, {number(after.value)} after"
    shown = _shown(found)
    if shown == 0:
        return f"{text}; {_between(found)}, so a gain is not shown."
    if shown > 0:
        return f"{text}: the repair made it worse; {_between(found)}."
    share = f", {percent(1 - after.value / before.value)} less" if before.value > 0 else ""
    return f"{text}{share} for {_bytes(found)}; {_between(found)}, so the gain is no accident of the text."


def _shown(found: Repair) -> int:
    """-1 for a gain beyond doubt, 1 for a loss beyond doubt, 0 for neither.

    Both files are measured on the same windows, so the interval of the paired difference decides: the two
    intervals overlap wherever windows differ more from each other than the repair changes any of them.
    """
    change = found.difference
    if change is not None:
        return -1 if change.high < 0 else 1 if change.low > 0 else 0
    before, after = found.kl_before, found.kl_after
    return -1 if after.high < before.low else 1 if before.high < after.low else 0


def _between(found: Repair) -> str:
    change = found.difference
    if change is None:
        return "the intervals do not overlap" if _shown(found) else "the intervals overlap"
    where = f"{signed(change.low)} to {signed(change.high)}"
    return f"window by window the change is {signed(change.value)} ({where})"


def _bytes(found: Repair) -> str:
    added = found.bytes_after - found.bytes_before
    if added == 0:
        return "no bytes at all"
    share = f" ({percent(abs(added) / found.bytes_before)})" if found.bytes_before else ""
    return f"{size(abs(added))}{share} {'more' if added > 0 else 'less'}"


def _tiles(found: Repair) -> tuple[Tile, ...]:
    return (
        Tile(
            "KL after the repair",
            number(found.kl_after.value),
            f"{span(found.kl_after)}; before {number(found.kl_before.value)}",
        ),
        Tile(
            "units replaced",
            f"{len(found.units):,}",
            f"{found.tensors_unchanged:,} tensors byte for byte as they were",
        ),
        Tile(
            "on disk",
            size(found.bytes_after),
            f"{_bytes(found)} than before" if found.bytes_after != found.bytes_before else "as before",
        ),
    )


def _row(unit: RepairedUnit) -> RepairedRow:
    same = unit.before == unit.after
    return RepairedRow(
        unit=unit.unit,
        change=f"{unit.before}, rounded again" if same else f"{unit.before} → {unit.after}",
        added="0"
        if unit.bytes_added == 0
        else f"{'+' if unit.bytes_added > 0 else '−'}{size(abs(unit.bytes_added))}",
        before="–" if unit.predicted_before is None else number(unit.predicted_before),
        after="–" if unit.predicted_after is None else number(unit.predicted_after),
    )


def _caption(found: Repair) -> str:
    if not found.units:
        return "No unit was replaced."
    again = sum(unit.before == unit.after for unit in found.units)
    raised = len(found.units) - again
    parts = [f"{again:,} rounded again in the same scheme"] if again else []
    parts += [f"{raised:,} moved to another scheme"] if raised else []
    known = [u for u in found.units if u.predicted_before is not None and u.predicted_after is not None]
    text = f"{plural(len(found.units), 'unit')} replaced: {' and '.join(parts)}"
    if not known:
        return f"{text}."
    before = sum(u.predicted_before or 0.0 for u in known)
    after = sum(u.predicted_after or 0.0 for u in known)
    return f"{text}; their predicted KL goes from {number(before)} to {number(after)}."


def _picture(found: Repair) -> Figure:
    return figure(
        [
            _mark("before", 1.0, found.kl_before, ACCENT, "x"),
            _mark("after", 0.0, found.kl_after, SERIES[4], "circle"),
        ],
        axis(
            "KL to the reference, nats per token",
            rangemode="tozero",
            nticks=6,
            range=[0, 1.08 * max(found.kl_before.high, found.kl_after.high, 1e-9)],
        ),
        axis("", tickvals=[0, 1], ticktext=["after  ", "before  "], range=[-0.6, 1.6], showgrid=False),
        height=170,
        showlegend=False,
    )


def _mark(name: str, row: float, kl: Interval, colour: str, symbol: str) -> Trace:
    return points(
        [kl.value],
        [row],
        [tooltip([name, f"KL {number(kl.value)}, {span(kl)}"])],
        {"size": 13, "symbol": symbol, "color": colour},
        name,
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, kl.high - kl.value)],
            "arrayminus": [max(0.0, kl.value - kl.low)],
            "color": MUTED,
            "thickness": 2,
            "width": 6,
        },
    )
