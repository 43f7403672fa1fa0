"""Several evaluations of one candidate as marks with intervals, one under the other, the noise floor beneath.

Names stand above their marks and not beside them: "candidate's weights in reference math" leaves no room for
a picture at the width of a phone.
"""

from collections.abc import Sequence

from quantriage.records.diagnosis import SplitLeg
from quantriage.records.types import Interval
from quantriage.report.chart import INK, MUTED, SERIES, Figure, axis, figure, points, row_name
from quantriage.report.wording import number, span, tooltip

_COLOURS = {
    "weights": (SERIES[0], "circle"),
    "runtime": (SERIES[1], "square"),
    "data": (SERIES[3], "diamond"),
}
_ROW = 54  # pixels


def legs_figure(legs: Sequence[tuple[SplitLeg, Interval]], title: str, *, floors: bool) -> Figure:
    """One row for each leg in the order given; `floors` adds a grey bar up to its noise floor."""
    rows = [float(len(legs) - 1 - i) for i in range(len(legs))]
    traces = []
    for part, (colour, symbol) in _COLOURS.items():
        chosen = [(leg, found, row) for (leg, found), row in zip(legs, rows, strict=True) if leg.part == part]
        if chosen:
            traces.append(
                points(
                    [found.value for _, found, _ in chosen],
                    [row for _, _, row in chosen],
                    [_tip(leg, found, title) for leg, found, _ in chosen],
                    {"size": 12, "symbol": symbol, "color": colour},
                    part,
                    error_x={
                        "type": "data",
                        "symmetric": False,
                        "array": [max(0.0, found.high - found.value) for _, found, _ in chosen],
                        "arrayminus": [max(0.0, found.value - found.low) for _, found, _ in chosen],
                        "color": colour,
                        "thickness": 2,
                        "width": 5,
                    },
                )
            )
    low = min(0.0, *(found.low for _, found in legs))
    high = max(1e-9, *(found.high for _, found in legs), *(_floor(leg) for leg, _ in legs if floors))
    room = 0.06 * (high - low)
    left = low - room if low < 0 else 0.0
    known = [(leg, row) for (leg, _), row in zip(legs, rows, strict=True) if floors and leg.noise_floor]
    return figure(
        traces,
        axis(title, nticks=6, range=[left, high + room], zeroline=low < 0, zerolinecolor=INK),
        axis("", showticklabels=False, ticks="", showgrid=False, range=[-0.55, len(legs) - 0.25]),
        height=90 + _ROW * len(legs),
        annotations=[row_name(leg.label, row, yshift=8) for (leg, _), row in zip(legs, rows, strict=True)],
        shapes=[_floor_bar(leg, row) for leg, row in known],
        margin={"l": 8, "r": 12, "t": 34, "b": 8},
    )


def _floor(leg: SplitLeg) -> float:
    return leg.noise_floor or 0.0


def _tip(leg: SplitLeg, found: Interval, title: str) -> str:
    lines = [leg.label, f"{leg.part}, by {leg.engine}", f"{title}: {number(found.value)}, {span(found)}"]
    lines += [f"noise floor {number(leg.noise_floor)}"] if leg.noise_floor is not None else []
    return tooltip([*lines, f"{leg.tokens:,} tokens"])


def _floor_bar(leg: SplitLeg, row: float) -> dict[str, object]:
    return {
        "type": "rect",
        "x0": 0,
        "x1": leg.noise_floor,
        "y0": row - 0.16,
        "y1": row + 0.16,
        "fillcolor": MUTED,
        "opacity": 0.45,
        "line": {"width": 0},
        "layer": "below",
    }
