"""Charts as plain data for plotly.js: one or more views of a figure, each with the sentence it proves.

Figures are written as plotly's own JSON with colours given as the page's CSS variables, which the page
resolves when drawn: so one figure serves light, dark and print. Rejected: plotly.graph_objects at run
time (half a second to import, colours fixed when rendered); tests do pass every figure through it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantriage.report.wording import chart_text, clip, number

Figure = dict[str, object]  # plotly's own JSON: data and layout
Trace = dict[str, object]
Axis = dict[str, object]

LOSS_RAMP = [[i / 4, f"var(--loss-{i})"] for i in range(5)]
BITS_RAMP = [[i / 4, f"var(--bits-{i})"] for i in range(5)]
INK = "var(--ink)"
MUTED = "var(--muted)"
PRIMARY = "var(--series-1)"
ACCENT = "var(--series-2)"
SERIES = tuple(f"var(--series-{i})" for i in range(1, 6))


@dataclass(frozen=True)
class View:
    """One figure and what to conclude from it. `label` names it where a chart has several."""

    label: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Chart:
    """A place on the page that shows one of its views at a time. `name` is unique on the page."""

    name: str
    title: str
    views: tuple[View, ...]


def axis(title: str, **plotly: object) -> Axis:
    """An axis that scrolls with the page instead of zooming under a finger. `plotly` is its own."""
    made: Axis = {
        "title": {"text": title, "standoff": 8},
        "fixedrange": True,
        "automargin": True,
        "gridcolor": "var(--grid)",
        "linecolor": "var(--line)",
        "zeroline": False,
        "tickcolor": "var(--line)",
    }
    return made | plotly


def log_axis(title: str, values: Sequence[float]) -> Axis:
    """A logarithmic axis around positive `values`, its ticks at 1, 2, 5 times powers of ten."""
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = 0.06 + 0.04 * (high - low)
    low, high = low - margin, high + margin
    ticks = round_ticks(low, high)
    labels = [number(tick, 1) for tick in ticks]
    return axis(title, type="log", range=[low, high], tickvals=ticks, ticktext=labels)


def round_ticks(low: float, high: float) -> list[float]:
    """Ticks for a range given in powers of ten: as many round numbers as a phone has room for."""
    steps = (1, 2, 5) if high - low < 1.7 else (1, 3) if high - low < 2.6 else (1,)
    exponents = range(math.floor(low), math.ceil(high) + 1)
    ticks = [m * 10.0**e for e in exponents for m in steps if low <= math.log10(m * 10.0**e) <= high]
    return ticks[:: max(1, math.ceil(len(ticks) / 7))]


def figure(traces: Sequence[Trace], x: Axis, y: Axis, *, height: int, **layout: object) -> Figure:
    """Put traces and axes together with the page's fonts and colours. `layout` is plotly's own."""
    base: dict[str, object] = {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "var(--muted)"},
        "hoverlabel": {
            "bgcolor": "var(--surface)",
            "bordercolor": "var(--line)",
            "font": {"family": "system-ui, sans-serif", "color": "var(--ink)", "size": 13},
            "align": "left",
        },
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "dragmode": False,
        "hovermode": "closest",
        "xaxis": x,
        "yaxis": y,
    }
    return {"data": list(traces), "layout": base | layout}


def points(
    xs: Sequence[float],
    ys: Sequence[float],
    tooltips: Sequence[str],
    marker: Mapping[str, object],
    name: str = "",
    **more: object,
) -> Trace:
    """A scatter of marks whose tooltips were written (and escaped) by the caller."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(xs),
        "y": list(ys),
        "name": name,
        "customdata": list(tooltips),
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": dict(marker),
    } | more


def line(xs: Sequence[float], ys: Sequence[float], name: str, style: Mapping[str, object]) -> Trace:
    """A line without tooltips."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(xs),
        "y": list(ys),
        "name": name,
        "hoverinfo": "skip",
        "line": dict(style),
    }


def row_name(name: str, y: float, most: int = 46, **place: object) -> dict[str, object]:
    """Annotation that names a row of a chart, at its left edge above `y`; `place` moves it. Cut at `most`."""
    return {
        "text": chart_text(clip(name, most)),
        "showarrow": False,
        "xref": "paper",
        "x": 0,
        "xanchor": "left",
        "y": y,
        "yanchor": "bottom",
        "font": {"size": 12, "color": INK},
        "bgcolor": "var(--surface)",  # over the grid's lines
        "borderpad": 1,
        **place,
    }
