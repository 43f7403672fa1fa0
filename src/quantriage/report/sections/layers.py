"""The map of layers: blocks down, modules across; sensitivity, chosen bits, error and rounding gain in turn.

A heat map, because sensitivity has structure in both directions (first blocks, down projections) that a
ranked list hides. All experts of a block share a cell: the worst of them for losses, the mean for bits.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from quantriage.report.base_scheme import RELATIVE, BaseSensitivity, Rung, base_sensitivity
from quantriage.report.chart import Chart, View
from quantriage.report.concentration import concentration
from quantriage.report.layer_map import Grid, Place, bits_map, lay_out, loss_map
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.site_names import Cell
from quantriage.report.wording import median, number, percent, plural, tooltip

FULL_PRECISION_BITS = 16.0


@dataclass(frozen=True)
class LayersContent:
    """Nothing beside the chart."""


def build(records: RunRecords) -> Section | None:
    """From the sites and whatever was found out about them; left out without either."""
    if not records.sites:
        return None
    grid = lay_out(records.sites)
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


def _sensitivity_views(grid: Grid, base: BaseSensitivity | None, tips: Mapping[Place, str]) -> list[View]:
    if base is None:
        return []
    views = []
    for rung in base.rungs:
        if rung is RELATIVE:
            continue
        values = base.values(rung)
        label = "Swap KL" if rung.name == "swap_kl" else "Fisher"
        drawn = loss_map(grid, values, tips, f"KL at {base.scheme}")
        views.append(View(label, _concentration(grid, values, rung, base.scheme), drawn))
    return views


def _concentration(grid: Grid, values: Mapping[str, float], rung: Rung, scheme: str) -> str:
    column = {site.name: cell.column for cell in grid.at.values() for site in cell.sites}
    said = concentration(column, values, f"{rung.title} at {scheme}", "site")
    return said or f"No site loses anything at {scheme}."


def _bits_views(records: RunRecords, grid: Grid, tips: Mapping[Place, str]) -> list[View]:
    if records.plan is None or not records.plan.assignments:
        return []
    chosen = {a.site: code_bits(a.scheme) for a in records.plan.assignments}
    bits = {name: value for name, value in chosen.items() if value is not None}
    widths = sorted(set(bits.values()))
    if not bits:
        return []
    counts = ", ".join(f"{sum(b == w for b in bits.values()):,} at {w:g}" for w in widths)
    if len(widths) == 1:
        counts = f"all {len(bits):,} at {widths[0]:g}"
    stored = number(records.plan.bits_per_weight)
    caption = f"Bits of the codes: {counts}; {stored} bits per weight with scales and zero points"
    above = [name for name, value in bits.items() if value > widths[0]]
    if above and len(widths) > 1:
        caption += f", {percent(len(above) / len(bits))} of sites above the narrowest"
    return [View("Chosen bits", caption + ".", bits_map(grid, bits, tips))]


def code_bits(scheme: str) -> float | None:
    """Bits of one code: 4 for w4a-g64 or Q4_K, 16 for a site in full precision, None if unknown."""
    found = re.match(r"(?:w|I?Q)(\d+)", scheme)
    return float(found[1]) if found else FULL_PRECISION_BITS if scheme == "none" else None


def _error_views(
    records: RunRecords, grid: Grid, base: BaseSensitivity | None, tips: Mapping[Place, str]
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
    return [View("Weight error", caption, loss_map(grid, values, tips, "relative error"))]


def _objective_views(records: RunRecords, grid: Grid, tips: Mapping[Place, str]) -> list[View]:
    values = {q.site: q.objective for q in records.quantized if q.objective > 0}
    if not values:
        return []
    worst = max(values, key=lambda name: values[name])
    caption = (
        f"Weighted output error left after rounding: median {number(median(values.values()))} of the "
        f"output's power, largest {number(values[worst])} at {worst}."
    )
    return [View("Output error", caption, loss_map(grid, values, tips, "output error"))]


def _tooltips(records: RunRecords, grid: Grid, base: BaseSensitivity | None) -> Mapping[Place, str]:
    facts = _Facts(records, base)
    return {place: tooltip(facts.of(cell)) for place, cell in grid.at.items()}


class _Facts:
    """Lines of the tooltip of a cell, from every record that knows its site."""

    def __init__(self, records: RunRecords, base: BaseSensitivity | None) -> None:
        self._base = base
        self._values = base.values(base.best) if base else {}
        self._schemes = {a.site: a.scheme for a in records.plan.assignments} if records.plan else {}
        self._shapes = {site.name: site.shape for site in records.sites}
        self._diagnosis = {d.site: d for d in records.diagnosis}
        self._quantized = {q.site: q for q in records.quantized}

    def of(self, cell: Cell) -> list[str]:
        """One site in full; of several (experts) the count, the mean and the worst in full."""
        if len(cell.sites) == 1:
            return self._site(cell.sites[0].name)
        known = {s.name: self._values[s.name] for s in cell.sites if s.name in self._values}
        lines = [f"{len(cell.sites)} experts, block {cell.block}"]
        if not known:
            return [*lines, *self._site(cell.sites[0].name)]
        worst = max(cell.sites, key=lambda s: known.get(s.name, 0.0))
        lines.append(
            f"mean {number(sum(known.values()) / len(known))}, largest {number(max(known.values()))}"
        )
        return [*lines, "", "Worst of them:", *self._site(worst.name)]

    def _site(self, name: str) -> list[str]:
        rows, columns = self._shapes[name]
        lines = [name, f"{rows:,} x {columns:,} (out x in)"]
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
