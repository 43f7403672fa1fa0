"""The heat map of blocks x modules as a figure: where cells lie, how colours scale, where labels fit.

Losses are coloured on a logarithmic scale (they span three decades), bits on log2. Experts of a block share
a cell. The colour bar sits in a top margin of known size, because plotly's automatic one depends on the
number of rows and pushes the map off the page for a one-block model.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from quantriage.report.chart import BITS_RAMP, LOSS_RAMP, Axis, Figure, Trace, axis, figure, round_ticks
from quantriage.report.site_names import Cell, Placed, cells, short_columns
from quantriage.report.wording import chart_text, number

Place = tuple[int, str]  # block, column
_BITS = (2, 3, 4, 6, 8, 16)
_LETTER = 7  # pixels
_PHONE = 330  # pixels for the columns


@dataclass(frozen=True)
class Grid:
    """The cells laid out by block and column, both in the model's order."""

    blocks: tuple[int, ...]
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    at: dict[Place, Cell]

    @property
    def sites(self) -> int:
        """How many sites the map shows."""
        return sum(len(cell.sites) for cell in self.at.values())

    @property
    def row_height(self) -> int:
        """Pixels of a block: generous for few, at least a readable stripe for many."""
        rows = len(self.blocks)
        return 44 if rows <= 4 else 32 if rows <= 12 else 21 if rows <= 40 else 15


@dataclass(frozen=True)
class _Scale:
    """Colours between two exponents, with the values that are written beside them."""

    ramp: list[list[object]]
    low: float
    high: float
    ticks: Mapping[float, str]  # exponent -> text


def lay_out(sites: Iterable[Placed]) -> Grid:
    """Place every site."""
    every = cells(sites)
    columns = tuple(dict.fromkeys(cell.column for cell in every))
    shorts = short_columns(columns)
    return Grid(
        blocks=tuple(sorted({cell.block for cell in every})),
        columns=columns,
        labels=tuple(shorts[column] for column in columns),
        at={(cell.block, cell.column): cell for cell in every},
    )


def loss_map(
    grid: Grid,
    values: Mapping[str, float],
    tips: Mapping[Place, str],
    title: str,
    marks: Mapping[Place, str] | None = None,
) -> Figure:
    """Colour each cell by the largest positive value of its sites, on a logarithmic scale; write its mark."""
    positive = {name: value for name, value in values.items() if value > 0}
    exponents = {place: math.log10(value) for place, value in _combined(grid, positive, max).items()}
    low, high = min(exponents.values(), default=0.0), max(exponents.values(), default=1.0)
    high = max(high, low + 0.01)
    ticks = {math.log10(tick): number(tick, 1) for tick in round_ticks(low - 0.001, high + 0.001)}
    scale = _Scale(LOSS_RAMP, low, high, ticks)
    return _map(grid, _heat(grid, exponents, tips, scale) | _written(grid, marks or {}), title)


def bits_map(grid: Grid, bits: Mapping[str, float], tips: Mapping[Place, str]) -> Figure:
    """Colour each cell by the mean bits of its sites, and write them into it."""
    means = _combined(grid, bits, lambda present: sum(present) / len(present))
    ticks = {math.log2(width): str(width) for width in _BITS}
    scale = _Scale(BITS_RAMP, math.log2(_BITS[0]), math.log2(_BITS[-1]), ticks)
    heat = _heat(grid, {place: math.log2(value) for place, value in means.items()}, tips, scale)
    return _map(grid, heat | _written(grid, {place: f"{bits:.3g}" for place, bits in means.items()}), "bits")


def _written(grid: Grid, texts: Mapping[Place, str]) -> Trace:
    """Texts into their cells, nothing at all where there is none."""
    if not texts:
        return {}
    rows = [[texts.get(place, "") for place in row] for row in _rows(grid)]
    return {"text": rows, "texttemplate": "%{text}", "textfont": {"size": 11}}


def _combined(
    grid: Grid, values: Mapping[str, float], combine: Callable[[list[float]], float]
) -> dict[Place, float]:
    found = {}
    for place, cell in grid.at.items():
        present = [values[site.name] for site in cell.sites if site.name in values]
        if present:
            found[place] = combine(present)
    return found


def _rows(grid: Grid) -> list[list[Place]]:
    return [[(block, column) for column in grid.columns] for block in grid.blocks]


def _heat(grid: Grid, exponents: Mapping[Place, float], tips: Mapping[Place, str], scale: _Scale) -> Trace:
    rows = _rows(grid)
    return {
        "type": "heatmap",
        "x": list(range(len(grid.columns))),
        "y": list(range(len(grid.blocks))),
        "z": [[exponents.get(place) for place in row] for row in rows],
        "customdata": [[tips.get(place, "") for place in row] for row in rows],
        "hovertemplate": "%{customdata}<extra></extra>",
        "colorscale": scale.ramp,
        "zmin": scale.low,
        "zmax": scale.high,
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "colorbar": {
            "orientation": "h",
            "y": 1 - 18 / _height(grid),  # below the title, which plotly would lay over a short map's bar
            "yref": "container",
            "yanchor": "top",
            "ypad": 0,
            "x": 0,
            "xanchor": "left",
            "xpad": 0,
            "thickness": 10,
            "len": 0.7,
            "outlinewidth": 0,
            "tickfont": {"size": 12},
            "tickvals": list(scale.ticks),
            "ticktext": list(scale.ticks.values()),
        },
    }


def _height(grid: Grid) -> int:
    return _top(grid) + 10 + len(grid.blocks) * grid.row_height


def _map(grid: Grid, heat: Trace, title: str) -> Figure:
    top = _top(grid)
    words: dict[str, object] = {"text": chart_text(title), "showarrow": False, "font": {"size": 12}}
    words |= {"xref": "paper", "x": 0, "xanchor": "left", "yref": "paper", "y": 1, "yanchor": "top"}
    return figure(
        [heat],
        _columns_axis(grid),
        _blocks_axis(grid),
        height=_height(grid),
        annotations=[words | {"yshift": top}],
        margin={"l": 8, "r": 12, "t": top, "b": 10},
    )


def _label_lines(grid: Grid) -> list[list[str]]:
    """Column labels broken at dots and blanks, for narrow columns."""
    return [label.replace(".", " ").split() or [label] for label in grid.labels]


def _upright(grid: Grid) -> bool:
    """Whether the labels fit side by side on a phone."""
    widest = max(len(line) for lines in _label_lines(grid) for line in lines)
    return widest * _LETTER * len(grid.columns) < _PHONE


def _top(grid: Grid) -> int:
    """Pixels above the map: the colour bar, then the labels."""
    lines = _label_lines(grid)
    if _upright(grid):
        return 64 + 16 * max(map(len, lines))
    return 80 + _LETTER * max(len(" ".join(parts)) for parts in lines)


def _columns_axis(grid: Grid) -> Axis:
    upright = _upright(grid)
    between = "<br>" if upright else " "
    return axis(
        "",
        side="top",
        tickvals=list(range(len(grid.columns))),
        ticktext=[between.join(chart_text(line) for line in lines) for lines in _label_lines(grid)],
        showgrid=False,
        tickangle=0 if upright else -60,
        automargin="left+right",
    )


def _blocks_axis(grid: Grid) -> Axis:
    step = 1 if len(grid.blocks) <= 12 else 5 if len(grid.blocks) <= 60 else 10
    ticks = [i for i, block in enumerate(grid.blocks) if block % step == 0]
    return axis(
        "block",
        autorange="reversed",
        tickvals=ticks,
        ticktext=[str(grid.blocks[i]) for i in ticks],
        showgrid=False,
    )
