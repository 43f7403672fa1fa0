"""Pictures of outliers: tails against a Gaussian's, blocks in order, and where in a matrix rounding errs.

Tails are drawn as the share of values beyond so many sigma, both axes logarithmic: a count for each bin would
hide one value among a million, which is what the picture is for.
"""

import math
from collections.abc import Sequence

from quantriage.records.outliers import (
    MASSIVE,
    RANGE_SIGMA,
    RANGE_WARNING,
    ErrorMap,
    InputOutliers,
    OutlierHistogram,
    WeightOutliers,
)
from quantriage.report.chart import (
    ACCENT,
    INK,
    LOSS_RAMP,
    MUTED,
    SERIES,
    Axis,
    Figure,
    Trace,
    axis,
    figure,
    line,
    log_axis,
    round_ticks,
)
from quantriage.report.site_names import column_of, short_columns
from quantriage.report.wording import chart_text, median, number, percent, tooltip

_DASHES = ("solid", "dash", "dot")
_SMALLEST = 0.25  # sigma: below this the tail is all there is
_LEAST_HEIGHT = 260


def tails(histograms: Sequence[OutlierHistogram], names: Sequence[str]) -> Figure:
    """Share of values beyond k sigma for each place, the Gaussian's beside them, a mark at 3 sigma."""
    curves = [_tail(h, name, index) for index, (h, name) in enumerate(zip(histograms, names, strict=True))]
    sigmas = [x for curve in curves for x in curve["x"]]  # type: ignore[attr-defined]
    shares = [y for curve in curves for y in curve["y"]]  # type: ignore[attr-defined]
    least = min(shares, default=1e-6)
    xs = [_SMALLEST * 1.03**i for i in range(150)]
    gaussian = [(x, math.erfc(x / math.sqrt(2))) for x in xs]
    drawn = [(x, y) for x, y in gaussian if y >= least]
    curves.append(
        line([x for x, _ in drawn], [y for _, y in drawn], "Gaussian", {"color": MUTED, "width": 1.5})
    )
    mark = {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": RANGE_SIGMA,
        "x1": RANGE_SIGMA,
        "y0": 0,
        "y1": 1,
    }
    words = {"text": "3 sigma", "showarrow": False, "x": math.log10(RANGE_SIGMA), "xanchor": "left"}
    words |= {"yref": "paper", "y": 1, "yanchor": "top", "font": {"size": 12}, "xshift": 4}
    return figure(
        curves,
        log_axis("magnitude, in sigma of the place", [_SMALLEST, max(sigmas, default=6.0)]),
        _share_axis(least),
        height=400,
        shapes=[mark | {"line": {"color": INK, "width": 1, "dash": "dot"}}],
        annotations=[words],
    )


def _tail(histogram: OutlierHistogram, name: str, index: int) -> Trace:
    """Points at bin edges, where the share beyond is exact."""
    magnitudes = histogram.magnitudes
    total = magnitudes.zeros + sum(magnitudes.counts)
    xs, ys, left = [], [], sum(magnitudes.counts)
    for edge, count in zip(magnitudes.edges(), magnitudes.counts, strict=False):
        sigmas = edge / histogram.std if histogram.std > 0 else 0.0
        if sigmas >= _SMALLEST and left:
            xs.append(sigmas)
            ys.append(left / total)
        left -= count
    ordinary = histogram.role == "ordinary"
    colour = SERIES[0] if ordinary else ACCENT if index == 0 else (SERIES[3], SERIES[4])[index % 2]
    tips = [
        tooltip([histogram.place, f"{y:.2g} of the values lie beyond {number(x)} sigma"])
        for x, y in zip(xs, ys, strict=True)
    ]
    dash = "solid" if ordinary else _DASHES[index % len(_DASHES)]
    style: dict[str, object] = {"color": colour, "width": 2.5, "dash": dash}
    return line(xs, ys, chart_text(name), style) | {
        "hoverinfo": "text",
        "customdata": tips,
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _share_axis(least: float) -> Axis:
    powers = range(0, math.floor(math.log10(least)) - 1, -1)
    step = 2 if len(powers) > 6 else 1
    ticks = [10.0**p for p in powers][::step]
    return log_axis("share beyond", [least, 1.0]) | {
        "tickvals": ticks,
        "ticktext": [
            "all" if tick == 1 else percent(tick) if tick > 1e-7 else f"{tick:.0e}" for tick in ticks
        ],
    }


def _share(tick: float) -> str:
    return "all" if tick == 1 else percent(tick) if tick > 1e-6 else f"{tick:.0e}"


def weight_profile(weights: Sequence[WeightOutliers]) -> Figure:
    """Largest and median range ratio of each block, with the warning's line."""
    blocks = sorted({w.block for w in weights})
    by_block = [[w for w in weights if w.block == block] for block in blocks]
    worst = [max(found, key=lambda w: w.range_ratio) for found in by_block]
    middle = [median(w.range_ratio for w in found) for found in by_block]
    xs = [float(block) for block in blocks]
    tips = [tooltip([w.site, f"range ratio {number(w.range_ratio)}"]) for w in worst]
    curves = [
        _marked(xs, [w.range_ratio for w in worst], "largest", tips, 0),
        _marked(xs, middle, "median", _at_blocks(blocks, middle), 1),
    ]
    values = [*(w.range_ratio for w in worst), *middle, RANGE_WARNING]
    return _profile(curves, "range over range within 3 sigma", values, RANGE_WARNING, "warning")


def input_profile(inputs: Sequence[InputOutliers]) -> Figure:
    """Maximum over mean magnitude of each kind of input, block by block; of a block's experts the worst."""
    columns: dict[str, dict[int, InputOutliers]] = {}
    for one in inputs:
        found = columns.setdefault(column_of(one), {})
        if one.block not in found or one.ratio > found[one.block].ratio:
            found[one.block] = one
    shorts = short_columns(columns)
    curves = []
    for index, (column, found) in enumerate(columns.items()):
        kept = [found[block] for block in sorted(found) if found[block].ratio > 0]
        tips = [tooltip([f"input of {i.name}", f"maximum over mean {number(i.ratio)}"]) for i in kept]
        xs, ys = [float(i.block) for i in kept], [i.ratio for i in kept]
        curves.append(_marked(xs, ys, shorts[column], tips, index))
    values = [*(i.ratio for i in inputs if i.ratio > 0), MASSIVE]
    return _profile(curves, "maximum over mean magnitude", values, MASSIVE, "alert")


def state_profile(states: Sequence[InputOutliers]) -> Figure:
    """Largest and mean magnitude of the state between blocks."""
    xs = [float(s.block) for s in states]
    tops = [s.maximum for s in states]
    means = [s.mean_magnitude for s in states]
    curves = [
        _marked(xs, tops, "largest", [tooltip([s.name, f"largest {number(s.maximum)}"]) for s in states], 0),
        _marked(
            xs, means, "mean", [tooltip([s.name, f"mean {number(s.mean_magnitude)}"]) for s in states], 1
        ),
    ]
    return _profile(curves, "magnitude", [v for v in (*tops, *means) if v > 0] or [1.0], None, "")


def _at_blocks(blocks: Sequence[int], values: Sequence[float]) -> list[str]:
    return [tooltip([f"block {b}", f"median {number(v)}"]) for b, v in zip(blocks, values, strict=True)]


def _marked(xs: list[float], ys: list[float], name: str, tips: list[str], index: int) -> Trace:
    colour = (ACCENT, SERIES[0], SERIES[4], SERIES[3], SERIES[2])[index % 5]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": xs,
        "y": ys,
        "name": chart_text(name),
        "customdata": tips,
        "hovertemplate": "%{customdata}<extra></extra>",
        "line": {"color": colour, "width": 2, "dash": _DASHES[index // 5 % len(_DASHES)]},
        "marker": {"size": 6, "color": colour},
    }


def _profile(
    curves: Sequence[Trace], what: str, values: Sequence[float], limit: float | None, word: str
) -> Figure:
    shapes = []
    words = []
    if limit is not None:
        ends = {"xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": limit, "y1": limit}
        shapes.append({"type": "line", "line": {"color": INK, "width": 1, "dash": "dot"}} | ends)
        words.append(
            {
                "text": f"{word} from {limit:g}",
                "showarrow": False,
                "xref": "paper",
                "x": 1,
                "xanchor": "right",
            }
            | {"y": math.log10(limit), "yanchor": "bottom", "font": {"size": 12}}
        )
    across = axis("block", tickformat="d", rangemode="tozero", nticks=8)
    return figure(curves, across, log_axis(what, values), height=380, shapes=shapes, annotations=words)


def error_map_figure(found: ErrorMap) -> Figure:
    """Groups of inputs across, rows (output channels) down; colour by error on a logarithmic scale."""
    positive = [value for row in found.errors for value in row if value > 0]
    low, high = math.log10(min(positive, default=0.1)), math.log10(max(positive, default=1.0))
    high = max(high, low + 0.01)
    rows, columns = len(found.errors), len(found.errors[0])
    ticks = round_ticks(low - 0.001, high + 0.001)
    heat: Trace = {
        "type": "heatmap",
        "x": [_span(i, found.groups_per_cell) for i in range(columns)],
        "y": [_span(i, found.rows_per_cell) for i in range(rows)],
        "z": [[math.log10(value) if value > 0 else None for value in row] for row in found.errors],
        "customdata": [
            [
                tooltip([f"rows {_span(r, found.rows_per_cell)}, groups {_span(c, found.groups_per_cell)}"])
                + f"<br>error {number(value)} of the weight"
                for c, value in enumerate(row)
            ]
            for r, row in enumerate(found.errors)
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
        "colorscale": LOSS_RAMP,
        "zmin": low,
        "zmax": high,
        "hoverongaps": False,
        "colorbar": {
            "orientation": "h",
            "y": 1.02,
            "yanchor": "bottom",
            "x": 0,
            "xanchor": "left",
            "thickness": 10,
            "len": 0.7,
            "outlinewidth": 0,
            "tickfont": {"size": 12},
            "tickvals": [math.log10(tick) for tick in ticks],
            "ticktext": [number(tick, 1) for tick in ticks],
        },
    }
    return figure(
        [heat],
        axis("group of inputs", type="category", showgrid=False, nticks=8, tickangle=0),
        axis("rows", type="category", autorange="reversed", showgrid=False, nticks=8),
        height=max(_LEAST_HEIGHT, 110 + 11 * rows),
        margin={"l": 8, "r": 12, "t": 56, "b": 8},
    )


def _span(cell: int, width: int) -> str:
    first = cell * width
    return str(first) if width == 1 else f"{first}-{first + width - 1}"
