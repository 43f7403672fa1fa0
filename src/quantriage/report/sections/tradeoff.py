"""KL against bits per weight: everything that was measured, and how well the prediction chose."""

from collections.abc import Sequence
from dataclasses import dataclass

from quantriage.records.types import Interval
from quantriage.report.chart import (
    ACCENT,
    INK,
    MUTED,
    SERIES,
    Chart,
    Figure,
    Trace,
    View,
    axis,
    figure,
    line,
    log_axis,
    points,
)
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.wording import median, number, percent, plural, span, tooltip

_KINDS = {  # kind -> (words, colour, symbol): the symbol tells them apart without colour
    "uniform": ("uniform", SERIES[2], "square"),
    "first-and-last": ("first and last", SERIES[3], "diamond"),
    "mix": ("mix", SERIES[0], "circle"),
    "swap": ("after swaps", SERIES[4], "triangle-up"),
}


@dataclass(frozen=True)
class Measured:
    """One point: what it costs and what it loses."""

    label: str
    kind: str
    bits: float
    kl: Interval
    predicted: float | None
    chosen: bool


@dataclass(frozen=True)
class TradeoffContent:
    """Nothing beside the chart."""


def build(records: RunRecords) -> Section | None:
    """From the mixes measured for selection and the final evaluations; left out below two points."""
    mixes = [
        Measured(m.label, m.kind, m.bits_per_weight, m.kl, m.predicted_kl, m.chosen) for m in records.mixes
    ]
    final = [
        Measured(
            r.label,
            "mix" if r.kind == "candidate" else r.kind,
            r.bits_per_weight,
            r.kl,
            None,
            r is records.shipped,
        )
        for r in (records.proof.results if records.proof else ())
        if r.kind != "reference"
    ]
    views = [
        View(label, _caption(found), _frontier(found))
        for label, found in (("Selection text", mixes), ("Evaluation text", final))
        if len(found) > 1
    ]
    predicted = [m for m in mixes if m.predicted and m.kl.value > 0]
    if len(predicted) > 2:
        views.append(
            View("Predicted against measured", _prediction_caption(predicted), _prediction(predicted))
        )
    if not views:
        return None
    count = plural(len(mixes) or len(final), "assignment")
    lead = f"{count} measured for real: lower and further left is better."
    return Section(
        "tradeoff", "What the bits buy", lead, TradeoffContent(), (Chart("tradeoff-chart", "", tuple(views)),)
    )


def pareto(found: Sequence[Measured]) -> list[Measured]:
    """Those that no other beats in bits and KL both, by increasing bits."""
    front: list[Measured] = []
    for point in sorted(found, key=lambda m: (m.bits, m.kl.value)):
        if not front or point.kl.value < front[-1].kl.value:
            front.append(point)
    return front


def _marks(found: Sequence[Measured], kind: str, name: str, colour: str, symbol: str) -> Trace | None:
    shown = [m for m in found if (m.kind == kind or kind == "chosen") and m.chosen == (kind == "chosen")]
    if not shown:
        return None
    return points(
        [m.bits for m in shown],
        [m.kl.value for m in shown],
        [
            tooltip(
                [m.label, f"KL {number(m.kl.value)}, {span(m.kl)}", f"{number(m.bits, 4)} bits per weight"]
                + ([f"predicted {number(m.predicted)}"] if m.predicted is not None else [])
            )
            for m in shown
        ],
        {
            "size": 18 if kind == "chosen" else 11,
            "symbol": symbol,
            "color": colour,
            "line": {"width": 1, "color": "var(--surface)"},
        },
        name,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [m.kl.high - m.kl.value for m in shown],
            "arrayminus": [m.kl.value - m.kl.low for m in shown],
            "color": MUTED,
            "thickness": 1,
            "width": 0,
        },
    )


def _all_marks(found: Sequence[Measured]) -> list[Trace]:
    traces = [_marks(found, kind, *style) for kind, style in _KINDS.items()]
    traces.append(_marks(found, "chosen", "shipped", ACCENT, "star"))
    return [trace for trace in traces if trace is not None]


def _frontier(found: Sequence[Measured]) -> Figure:
    front = pareto(found)
    frontier = line(
        [m.bits for m in front],
        [m.kl.value for m in front],
        "Pareto front",
        {"color": MUTED, "width": 1.5, "dash": "dot"},
    )
    values = [m.kl.value for m in found]
    log = min(values) > 0 and max(values) > 3 * min(values)
    return figure(
        [frontier, *_all_marks(found)],
        axis("bits per weight, as stored"),
        log_axis("KL, nats per token", values) if log else axis("KL, nats per token", rangemode="tozero"),
        height=430,
    )


def _caption(found: Sequence[Measured]) -> str:
    front = pareto(found)
    chosen = next((m for m in found if m.chosen), None)
    if chosen is None:
        least = front[-1]
        return f"{least.label} loses least, {number(least.kl.value)} at {number(least.bits)} bits per weight."
    rivals = [
        m for m in found if not m.chosen and m.kind in ("uniform", "first-and-last") and m.bits <= chosen.bits
    ]
    place = "on the Pareto front" if chosen in front else "off the Pareto front"
    text = f"{chosen.label} at {number(chosen.bits)} bits is {place} with KL {number(chosen.kl.value)}"
    if not rivals:
        return text + "; nothing simpler of no more bits was measured."
    best = min(rivals, key=lambda m: m.kl.value)
    if best.kl.value <= 0:
        return f"{text}; {best.label} loses nothing either."
    change = 1 - chosen.kl.value / best.kl.value
    side = "below" if change >= 0 else "above"
    return f"{text}, {percent(abs(change))} {side} {best.label}, the best simple rule of no more bits."


def _prediction(found: Sequence[Measured]) -> Figure:
    both = [m.kl.value for m in found] + [m.predicted for m in found if m.predicted]
    ends = [min(both) * 0.85, max(both) * 1.18]
    marks = points(
        [m.predicted or 0.0 for m in found],
        [m.kl.value for m in found],
        [
            tooltip([m.label, f"predicted {number(m.predicted or 0)}, measured {number(m.kl.value)}"])
            for m in found
        ],
        {
            "size": [18 if m.chosen else 11 for m in found],
            "symbol": ["star" if m.chosen else _KINDS[m.kind][2] for m in found],
            "color": [ACCENT if m.chosen else _KINDS[m.kind][1] for m in found],
        },
        "assignments",
    )
    return figure(
        [line(ends, ends, "equal", {"color": INK, "width": 1, "dash": "dot"}), marks],
        log_axis("predicted KL, sum over sites", both),
        log_axis("measured KL", both),
        height=430,
        showlegend=False,
    )


def _prediction_caption(found: Sequence[Measured]) -> str:
    ratios = [m.kl.value / m.predicted for m in found if m.predicted]
    return (
        f"Measured KL is {number(median(ratios))} times the predicted sum in the middle, "
        f"{number(min(ratios))} to {number(max(ratios))} over {plural(len(ratios), 'assignment')}; "
        "on the dotted line losses of sites would add up exactly."
    )
