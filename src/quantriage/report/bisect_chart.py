"""The picture of a bisect: figure against threshold above, units under test below, a mark for each."""

import math
from collections.abc import Sequence

from quantriage.records.diagnosis import BisectStep
from quantriage.report.chart import (
    ACCENT,
    INK,
    MUTED,
    SERIES,
    Axis,
    Figure,
    Trace,
    axis,
    figure,
    line,
    log_axis,
    points,
)
from quantriage.report.wording import clip, listed, number, plural, tooltip

_NONE = 0.6  # where a set of no units is drawn on the logarithmic axis


def path_figure(steps: Sequence[BisectStep], threshold: float | None) -> Figure:
    """Both panels; the upper one is left out where the criterion is a command without a figure."""
    valued = [step for step in steps if step.value is not None]
    counts = [max(_NONE, float(len(step.units))) for step in steps]
    numbers = [float(step.number) for step in steps]
    room = max(0.5, 0.03 * len(steps))
    walk = line(numbers, counts, "", {"color": MUTED, "width": 1.5, "shape": "hv"}) | {"showlegend": False}
    traces = [walk, *_marks(steps, counts, legend=True)]
    below = _units_axis(counts)
    across = axis("evaluation", tickformat="d", range=[1 - room, numbers[-1] + room])
    if not valued:
        return figure(traces, across, below, height=280)
    values = [step.value or 0.0 for step in valued]
    upper = [trace | {"yaxis": "y2"} for trace in _marks(valued, values, legend=False)]
    above = _value_axis([*values, *([threshold] if threshold is not None else [])])
    shapes = [_threshold_line(threshold)] if threshold is not None else []
    return figure(
        traces + upper,
        across,
        below | {"domain": [0, 0.42]},
        height=440,
        yaxis2=above | {"domain": [0.52, 1], "anchor": "x"},
        shapes=shapes,
        annotations=[_threshold_words(threshold, above)] if threshold is not None else [],
    )


def _units_axis(counts: Sequence[float]) -> Axis:
    made = log_axis("units tried", [*counts, 2.0])
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 20000) if t <= max(counts)]
    ticks = ticks[-1::-2][::-1] if len(ticks) > 5 else ticks
    none = min(counts) < 1
    return made | {
        "tickvals": [*([_NONE] if none else []), *ticks],
        "ticktext": [*(["0"] if none else []), *(f"{tick:,}" for tick in ticks)],
    }


def _value_axis(values: Sequence[float]) -> Axis:
    if min(values) > 0 and max(values) > 5 * min(values):
        return log_axis("criterion", values)
    return axis("criterion", nticks=6)


def _marks(steps: Sequence[BisectStep], ys: Sequence[float], *, legend: bool) -> list[Trace]:
    traces = []
    for bad, name, colour, symbol in ((True, "bad", ACCENT, "x"), (False, "good", SERIES[4], "circle")):
        chosen = [(step, y) for step, y in zip(steps, ys, strict=True) if step.bad == bad]
        if chosen:
            traces.append(
                points(
                    [float(step.number) for step, _ in chosen],
                    [y for _, y in chosen],
                    [_tip(step) for step, _ in chosen],
                    {"size": 9 if len(steps) <= 40 else 7, "symbol": symbol, "color": colour},
                    name,
                    legendgroup=name,
                    showlegend=legend,
                )
            )
    return traces


def _tip(step: BisectStep) -> str:
    value = "" if step.value is None else f", figure {number(step.value)}"
    names = [clip(name, 80) for name in step.units[:3]]
    shown = listed([*names, *step.units[3:]])
    return tooltip(
        [f"{step.number}: {plural(len(step.units), 'unit')}, {'bad' if step.bad else 'good'}{value}", shown]
    )


def _threshold_line(threshold: float) -> dict[str, object]:
    ends = {"xref": "paper", "x0": 0, "x1": 1, "yref": "y2", "y0": threshold, "y1": threshold}
    return {"type": "line", "line": {"color": INK, "width": 1, "dash": "dot"}} | ends


def _threshold_words(threshold: float, above: Axis) -> dict[str, object]:
    logarithmic = above.get("type") == "log"
    return {
        "text": f"threshold {number(threshold)}",
        "showarrow": False,
        "xref": "paper",
        "x": 1,
        "xanchor": "right",
        "yref": "y2",
        "y": math.log10(threshold) if logarithmic else threshold,  # an annotation wants the exponent
        "yanchor": "bottom",
        "font": {"size": 12},
    }
