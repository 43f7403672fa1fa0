"""Bars with intervals, one row for each model and engine, its name over it: names are longer than a phone.

A bar begins at zero, so that lengths may be compared; the unquantized model's length is drawn on through
the rows as a dotted line.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quantriage.records.types import Interval
from quantriage.report.chart import INK, MUTED, SERIES, Figure, axis, figure, row_name
from quantriage.report.wording import number, span, tooltip

_ROW = 58  # pixels


@dataclass(frozen=True)
class Bar:
    """One row. `reference`: the unquantized model."""

    name: str
    found: Interval
    reference: bool
    lines: tuple[str, ...]  # of the tooltip


def bars_figure(bars: Sequence[Bar], title: str) -> Figure:
    """In the order given, from the top."""
    rows = [float(len(bars) - 1 - i) for i in range(len(bars))]
    traces = []
    for reference, name, colour in ((True, "unquantized", MUTED), (False, "quantized", SERIES[0])):
        chosen = [(bar, row) for bar, row in zip(bars, rows, strict=True) if bar.reference == reference]
        if not chosen:
            continue
        found = [bar.found for bar, _ in chosen]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "x": [one.value for one in found],
                "y": [row for _, row in chosen],
                "width": 0.34,
                "name": name,
                "marker": {"color": colour},
                "customdata": [_tip(bar, title) for bar, _ in chosen],
                "hovertemplate": "%{customdata}<extra></extra>",
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [max(0.0, one.high - one.value) for one in found],
                    "arrayminus": [max(0.0, one.value - one.low) for one in found],
                    "color": INK,
                    "thickness": 1.5,
                    "width": 5,
                },
            }
        )
    most = max(1e-12, *(bar.found.high for bar in bars))
    return figure(
        traces,
        axis(title, nticks=6, range=[0, 1.06 * most]),
        axis("", showticklabels=False, ticks="", showgrid=False, range=[-0.45, len(bars) - 0.3]),
        height=90 + _ROW * len(bars),
        annotations=[row_name(bar.name, row + 0.19, 44) for bar, row in zip(bars, rows, strict=True)],
        shapes=[_line(bar, len(bars)) for bar in bars if bar.reference],
        margin={"l": 8, "r": 12, "t": 34, "b": 8},
    )


def _tip(bar: Bar, title: str) -> str:
    return tooltip([bar.name, f"{title}: {number(bar.found.value)}, {span(bar.found)}", *bar.lines])


def _line(bar: Bar, rows: int) -> dict[str, object]:
    return {
        "type": "line",
        "x0": bar.found.value,
        "x1": bar.found.value,
        "y0": -0.45,
        "y1": rows - 0.7,
        "line": {"color": MUTED, "width": 1, "dash": "dot"},
        "layer": "below",
    }
