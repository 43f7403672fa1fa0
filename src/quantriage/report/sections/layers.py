"""The map of layers: blocks down, modules across; sensitivity, chosen bits, error and rounding gain in turn.

A heat map, because sensitivity has structure in both directions (first blocks, down projections) that a
ranked list hides. All experts of a block share a cell: the worst of them for losses, the mean for bits.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quantriage.report.base_scheme import RELATIVE, BaseSensitivity, Rung, base_sensitivity
from quantriage.report.chart import BITS_RAMP, LOSS_RAMP, Chart, Trace, View, axis, figure, round_ticks
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.site_names import Cell, cells, short_columns
from quantriage.report.wording import chart_text, median, number, percent, plural, tooltip

FULL_PRECISION_BITS = 16.0


@dataclass(frozen=True)
class LayersContent:
    """Nothing beside the chart."""


@dataclass(frozen=True)
class Grid:
    """The cells laid out: `at[block, column]`."""

    blocks: tuple[int, ...]
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    at: dict[tuple[int, str], Cell]

    @property
    def sites(self) -> int:
        """How many sites the map shows."""
        return sum(len(cell.sites) for cell in self.at.values())


def build(records: RunRecords) -> Section | None:
    """From the sites and whatever was found out about them; left out without either."""
    if not records.sites:
        return None
    grid = _grid(records)
    base = base_sensitivity(records)
    tips = _tooltips(records, grid, base)
    views = [*_sensitivity_views(grid, base, tips), *_bits_views(records, grid, tips)]
    views += _error_views(records, grid, base, tips) + _objective_views(records, grid, tips)
    if not views:
        return None
    blocks = plural(len(grid.blocks), "block")
    lead = f"{plural(grid.sites, 'site')} in {blocks}, in the order the model runs them."
    if any(len(cell.sites) > 1 for cell in grid.at.values()):
        lead += " The experts of a block share one cell: the worst of them for losses, their mean for bits."
    return Section(
        "layers", "Map of the layers", lead, LayersContent(), (Chart("layer-map", "", tuple(views)),)
    )


def _grid(records: RunRecords) -> Grid:
    every = cells(records.sites)
    columns = tuple(dict.fromkeys(cell.column for cell in every))
    shorts = short_columns(columns)
    return Grid(
        blocks=tuple(sorted({cell.block for cell in every})),
        columns=columns,
        labels=tuple(shorts[column] for column in columns),
        at={(cell.block, cell.column): cell for cell in every},
    )


def _sensitivity_views(grid: Grid, base: BaseSensitivity | None, tips: dict[Cell, str]) -> list[View]:
    if base is None:
        return []
    views = []
    for rung in base.rungs:
        if rung is RELATIVE:
            continue
        values = base.values(rung)
        label = "Swap KL" if rung.name == "swap_kl" else "Fisher"
        drawn = _loss_map(grid, values, tips, f"KL at {base.scheme}")
        views.append(View(label, concentration(grid, values, rung, base.scheme), drawn))
    return views


def concentration(grid: Grid, values: Mapping[str, float], rung: Rung, scheme: str) -> str:
    """How few sites carry half of the loss, and what they have in common."""
    column = {site.name: cell.column for cell in grid.at.values() for site in cell.sites}
    ranked = sorted((name for name in values if name in column), key=lambda name: -values[name])
    total = sum(values[name] for name in ranked)
    if not ranked or total <= 0:
        return f"No site loses anything at {scheme}."
    carried, top = 0.0, []
    for name in ranked:
        top.append(name)
        carried += values[name]
        if carried >= total / 2:
            break
    kinds: dict[str, int] = {}
    for name in top:
        kinds[column[name]] = kinds.get(column[name], 0) + 1
    kind, most = max(kinds.items(), key=lambda item: item[1])
    common = f"all are {kind}" if most == len(top) else f"{most} of them {kind}"
    if len(top) == 1:
        common = f"it is {top[0]}"
    verb = "carries" if len(top) == 1 else "carry"
    return (
        f"{plural(len(top), 'site')} of {len(ranked):,} {verb} {percent(carried / total)} of the "
        f"{rung.title} at {scheme}; {common}."
    )


def _bits_views(records: RunRecords, grid: Grid, tips: dict[Cell, str]) -> list[View]:
    if records.plan is None or not records.plan.assignments:
        return []
    chosen = {a.site: code_bits(a.scheme) for a in records.plan.assignments}
    bits = {name: value for name, value in chosen.items() if value is not None}
    widths = sorted(set(bits.values()))
    drawn = figure(
        [
            _heat(
                grid,
                _cell_values(grid, bits, _mean),
                tips,
                BITS_RAMP,
                (2.0, 16.0),
                "bits",
                written=True,
                root=True,
            )
        ],
        _columns_axis(grid),
        _blocks_axis(grid),
        height=_height(grid),
    )
    counts = ", ".join(f"{sum(b == w for b in bits.values()):,} at {w:g}" for w in widths)
    if len(widths) == 1:
        counts = f"all {len(bits):,} at {widths[0]:g}"
    stored = number(records.plan.bits_per_weight)
    caption = f"Bits of the codes: {counts}; {stored} bits per weight with scales and zero points"
    above = [name for name, value in bits.items() if value > widths[0]]
    if above and len(widths) > 1:
        caption += f", {percent(len(above) / len(bits))} of sites above the narrowest"
    return [View("Chosen bits", caption + ".", drawn)]


def code_bits(scheme: str) -> float | None:
    """Bits of one code: 4 for w4a-g64, 16 for a site left in full precision, None for an unknown scheme."""
    found = re.match(r"w(\d+)", scheme)
    return float(found[1]) if found else FULL_PRECISION_BITS if scheme == "none" else None


def _error_views(
    records: RunRecords, grid: Grid, base: BaseSensitivity | None, tips: dict[Cell, str]
) -> list[View]:
    values = {q.site: q.error.relative for q in records.quantized}
    where = "as shipped"
    if not values and base is not None:
        values, where = base.values(RELATIVE), f"at {base.scheme}"
    if not values or max(values.values()) <= 0:
        return []
    worst = max(values, key=lambda name: values[name])
    caption = (
        f"Relative weight error {where}: median {number(median(values.values()))}, largest "
        f"{number(values[worst])} at {worst}."
    )
    return [View("Weight error", caption, _loss_map(grid, values, tips, "relative error"))]


def _objective_views(records: RunRecords, grid: Grid, tips: dict[Cell, str]) -> list[View]:
    values = {q.site: q.objective for q in records.quantized if q.objective > 0}
    if not values:
        return []
    worst = max(values, key=lambda name: values[name])
    caption = (
        f"Weighted output error left after rounding: median {number(median(values.values()))} of the "
        f"output's power, largest {number(values[worst])} at {worst}."
    )
    return [View("Output error", caption, _loss_map(grid, values, tips, "output error"))]


def _loss_map(
    grid: Grid, values: Mapping[str, float], tips: dict[Cell, str], title: str
) -> dict[str, object]:
    """A map on a logarithmic scale, the worst site of each cell."""
    positive = {name: value for name, value in values.items() if value > 0}
    heights = {cell: math.log10(value) for cell, value in _cell_values(grid, positive, max).items()}
    low, high = (min(heights.values()), max(heights.values())) if heights else (0.0, 1.0)
    heat = _heat(grid, heights, tips, LOSS_RAMP, (low, max(high, low + 0.01)), title)
    return figure([heat], _columns_axis(grid), _blocks_axis(grid), height=_height(grid))


def _cell_values(
    grid: Grid, values: Mapping[str, float], combine: Callable[[list[float]], float]
) -> dict[Cell, float]:
    found = {}
    for cell in grid.at.values():
        present = [values[site.name] for site in cell.sites if site.name in values]
        if present:
            found[cell] = combine(present)
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _heat(
    grid: Grid,
    values: Mapping[Cell, float],
    tips: Mapping[Cell, str],
    ramp: list[list[object]],
    limits: tuple[float, float],
    title: str,
    *,
    written: bool = False,
    root: bool = False,
) -> Trace:
    """The trace. With `root`, colours follow log2 of the value (bits); otherwise values are log10 already."""
    rows = [[grid.at.get((block, column)) for column in grid.columns] for block in grid.blocks]
    scale = math.log2 if root else float
    bar: dict[str, object] = {
        "orientation": "h",
        "y": 1 + 40 / (len(grid.blocks) * _row_height(grid)),
        "yanchor": "bottom",
        "ypad": 0,
        "thickness": 10,
        "len": 0.7,
        "x": 0,
        "xanchor": "left",
        "xpad": 0,
        "outlinewidth": 0,
        "title": {"text": chart_text(title), "side": "top", "font": {"size": 12}},
        "tickfont": {"size": 12},
    }
    bar |= _bits_ticks() if root else _loss_ticks(*limits)
    trace: Trace = {
        "type": "heatmap",
        "x": list(range(len(grid.columns))),
        "y": list(range(len(grid.blocks))),
        "z": [[scale(values[cell]) if cell and cell in values else None for cell in row] for row in rows],
        "customdata": [[tips.get(cell, "") if cell else "" for cell in row] for row in rows],
        "hovertemplate": "%{customdata}<extra></extra>",
        "colorscale": ramp,
        "zmin": scale(limits[0]),
        "zmax": scale(limits[1]),
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "colorbar": bar,
    }
    if written:
        texts = [[f"{values[cell]:.3g}" if cell and cell in values else "" for cell in row] for row in rows]
        trace |= {"text": texts, "texttemplate": "%{text}", "textfont": {"size": 11}}
    return trace


def _bits_ticks() -> dict[str, object]:
    return {
        "tickvals": [math.log2(b) for b in (2, 3, 4, 6, 8, 16)],
        "ticktext": ["2", "3", "4", "6", "8", "16"],
    }


def _loss_ticks(low: float, high: float) -> dict[str, object]:
    """Round values on a log10 scale, given where the colour bar (which counts in exponents) has them."""
    ticks = round_ticks(low - 0.001, high + 0.001)
    return {"tickvals": [math.log10(tick) for tick in ticks], "ticktext": [number(tick, 1) for tick in ticks]}


def _columns_axis(grid: Grid) -> dict[str, object]:
    return axis(
        "",
        side="top",
        tickvals=list(range(len(grid.columns))),
        ticktext=[chart_text(label) for label in grid.labels],
        showgrid=False,
        tickangle=0 if max(map(len, grid.labels)) < 8 else "auto",
    )


def _blocks_axis(grid: Grid) -> dict[str, object]:
    step = 1 if len(grid.blocks) <= 12 else 5 if len(grid.blocks) <= 60 else 10
    ticks = [i for i, block in enumerate(grid.blocks) if block % step == 0]
    return axis(
        "block",
        autorange="reversed",
        tickvals=ticks,
        ticktext=[str(grid.blocks[i]) for i in ticks],
        showgrid=False,
    )


def _row_height(grid: Grid) -> int:
    rows = len(grid.blocks)
    return 44 if rows <= 4 else 32 if rows <= 12 else 21 if rows <= 40 else 15


def _height(grid: Grid) -> int:
    return 110 + len(grid.blocks) * _row_height(grid)


def _tooltips(records: RunRecords, grid: Grid, base: BaseSensitivity | None) -> dict[Cell, str]:
    facts = _Facts(records, base)
    return {cell: tooltip(facts.of(cell)) for cell in grid.at.values()}


class _Facts:
    """Lines of the tooltip of a cell, from every record that knows its site."""

    def __init__(self, records: RunRecords, base: BaseSensitivity | None) -> None:
        self._base = base
        self._values = base.values(base.best) if base else {}
        self._schemes = {a.site: a.scheme for a in records.plan.assignments} if records.plan else {}
        self._diagnosis = {d.site: d for d in records.diagnosis}
        self._quantized = {q.site: q for q in records.quantized}

    def of(self, cell: Cell) -> list[str]:
        """One site in full; of several (experts) the count, the mean and the worst in full."""
        if len(cell.sites) == 1:
            return self._site(cell.sites[0].name, cell.sites[0].shape)
        known = {s.name: self._values[s.name] for s in cell.sites if s.name in self._values}
        lines = [f"{len(cell.sites)} experts, block {cell.block}"]
        if not known:
            return [*lines, *self._site(cell.sites[0].name, cell.sites[0].shape)]
        worst = max(cell.sites, key=lambda s: known.get(s.name, 0.0))
        lines.append(f"mean {number(_mean(list(known.values())))}, largest {number(max(known.values()))}")
        return [*lines, "", "Worst of them:", *self._site(worst.name, worst.shape)]

    def _site(self, name: str, shape: tuple[int, int]) -> list[str]:
        lines = [name, f"{shape[0]:,} x {shape[1]:,} (out x in)"]
        if name in self._schemes:
            lines.append(f"stored as {self._schemes[name]}")
        if self._base is not None and name in self._values:
            lines.append(f"{self._base.best.title} {number(self._values[name])} at {self._base.scheme}")
        if name in self._quantized:
            q = self._quantized[name]
            lines.append(f"weight error {number(q.error.relative)}, output error {number(q.objective)}")
        if name in self._diagnosis:
            d = self._diagnosis[name]
            lines += [f"rank {d.rank:,}, {percent(d.share)} of the loss, {d.category}", d.recommendation]
        return lines
