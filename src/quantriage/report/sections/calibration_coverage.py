"""Does the calibration set cover production: verdict, inputs and prompts covered worst, what to add."""

from collections.abc import Mapping
from dataclasses import dataclass

from quantriage.records.calibration import CalibrationCheck, ExpectedCost, InputCoverage
from quantriage.report.chart import PRIMARY, Chart, Figure, View, axis, figure
from quantriage.report.layer_map import Grid, Place, lay_out, loss_map
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.tile import Tile
from quantriage.report.wording import listed, number, percent, plural, sentence, span, tooltip, visible

SHOWN = 15


@dataclass(frozen=True)
class TestRow:
    """One two-sample test."""

    what: str
    statistic: str
    baseline: str
    p_value: str
    said: str


@dataclass(frozen=True)
class InputRow:
    """One input and its sites."""

    sites: str
    ratio: str
    p_value: str
    outside: str
    span: str
    error: str
    alarm: bool


@dataclass(frozen=True)
class PromptRow:
    """One prompt or window of production."""

    excerpt: str
    ratio: str
    tokens: str
    unseen: str
    added: str


@dataclass(frozen=True)
class CoverageContent:
    """Everything but the charts."""

    state: str
    badge: str
    sentence: str
    tiles: tuple[Tile, ...]
    tests: tuple[TestRow, ...]
    tests_caption: str
    inputs: tuple[InputRow, ...]
    inputs_caption: str
    prompts: tuple[PromptRow, ...]
    prompts_caption: str
    unseen: str
    warnings: tuple[str, ...]
    command: str


def build(records: RunRecords) -> Section | None:
    """From a check; left out without."""
    found = records.calibration_check
    if found is None:
        return None
    content = CoverageContent(
        state={"covered": "proven", "differs": "open", "not covered": "blamed"}[found.verdict],
        badge=sentence(found.verdict),
        sentence=found.sentence,
        tiles=_tiles(found),
        tests=_tests(found),
        tests_caption=_tests_caption(found),
        inputs=tuple(map(_input, found.inputs[:SHOWN])),
        inputs_caption=_inputs_caption(found),
        prompts=_prompts(found),
        prompts_caption=_prompts_caption(found),
        unseen=_unseen(found),
        warnings=tuple(finding.text for finding in found.findings if finding.severity != "info"),
        command=found.next_command,
    )
    lead = (
        f"{found.calibration.source} ({found.calibration.sequences:,} windows) against "
        f"{found.production.source} ({found.production.sequences:,} windows), each of "
        f"{found.production.length:,} tokens."
    )
    title = "Does calibration cover production"
    return Section("calibration-coverage", title, lead, content, _charts(records, found))


def _tiles(found: CalibrationCheck) -> tuple[Tile, ...]:
    alarms = sum(record.alarm for record in found.inputs)
    tiles = [
        Tile("inputs in alarm", f"{alarms:,}", f"of {len(found.inputs):,}"),
        Tile(
            "tokens of a kind never seen",
            percent(found.tokens.unseen),
            f"{percent(found.tokens.unseen_within)} of one half of calibration against the other",
        ),
    ]
    return (*tiles, *(_cost_tiles(found.cost) if found.cost else ()))


def _cost_tiles(cost: ExpectedCost) -> tuple[Tile, ...]:
    added = f"with {plural(cost.windows_added, 'window')} of production added"
    tiles = [
        Tile("predicted KL on production", number(cost.predicted), f"{number(cost.predicted_fixed)} {added}")
    ]
    if cost.measured is not None and cost.measured_fixed is not None:
        tiles.append(Tile("measured before", number(cost.measured.value), span(cost.measured)))
        tiles.append(Tile("measured after", number(cost.measured_fixed.value), span(cost.measured_fixed)))
    return tuple(tiles)


def _tests(found: CalibrationCheck) -> tuple[TestRow, ...]:
    names = {
        "tokens": "Jensen-Shannon divergence of the tokens",
        "activations": "energy distance of the states",
    }
    return tuple(
        TestRow(
            names.get(test.what, test.what),
            number(test.statistic),
            number(test.baseline),
            number(test.p_value),
            "differ" if test.p_value < 0.01 else "not told apart",
        )
        for test in found.tests
    )


def _tests_caption(found: CalibrationCheck) -> str:
    differing = [test.what for test in found.tests if test.p_value < 0.01]
    if not differing:
        return "Windows of calibration and of production could be exchanged: no test tells them apart."
    return (
        f"The {listed(differing)} of the two differ for certain; whether that costs anything is a question "
        "for the inputs below."
    )


def _input(record: InputCoverage) -> InputRow:
    errors = "–"
    if record.calibrated_error is not None and record.production_error is not None:
        errors = f"{percent(record.calibrated_error)} → {percent(record.production_error)}"
    return InputRow(
        sites=listed(record.sites, 1),
        ratio="never reached" if record.ratio is None else number(record.ratio),
        p_value="–" if record.p_value is None else number(record.p_value),
        outside="–" if record.outside is None else percent(record.outside),
        span="–" if record.range_ratio is None else number(record.range_ratio),
        error=errors,
        alarm=record.alarm,
    )


def _inputs_caption(found: CalibrationCheck) -> str:
    alarms = [record for record in found.inputs if record.alarm]
    if not alarms:
        return (
            "No input is in alarm: production sends nothing into directions that calibration left out, "
            "beyond what two halves of calibration send each other."
        )
    beyond = [record for record in alarms if record.range_ratio is not None and record.range_ratio > 1.1]
    wide = (
        f"; at {len(beyond):,} of them its range is wider too"
        if beyond
        else "; none of their ranges is wider"
    )
    return (
        f"{plural(len(alarms), 'input')} of {len(found.inputs):,} in alarm, first {alarms[0].sites[0]}{wide}"
        ". A ratio of 2 means that a token of production lies twice as far out as one of calibration."
    )


def _prompts(found: CalibrationCheck) -> tuple[PromptRow, ...]:
    return tuple(
        PromptRow(
            prompt.excerpt,
            number(prompt.ratio),
            f"{prompt.tokens:,}",
            percent(prompt.unseen),
            "" if prompt.added is None else f"no. {prompt.added}",
        )
        for prompt in found.prompts[:SHOWN]
    )


def _prompts_caption(found: CalibrationCheck) -> str:
    if not found.prompts:
        return "Tokens could not be told apart by prompt."
    worst = found.prompts[0]
    far = sum(prompt.ratio > 1.25 for prompt in found.prompts)
    much = "and more " if far == len(found.prompts) and far >= 40 else ""
    return (
        f"The worst prompt lies {number(worst.ratio)} times as far out as calibration does; {far:,} {much}"
        f"lie more than 1.25 times. {plural(len(found.gains), 'window')} are proposed to be added."
    )


def _unseen(found: CalibrationCheck) -> str:
    common = [f"{visible(text)} ({count:,})" for text, count in found.tokens.commonest_unseen]
    return f"Commonest tokens that calibration never has: {listed(common, 12)}." if common else ""


def _charts(records: RunRecords, found: CalibrationCheck) -> tuple[Chart, ...]:
    charts = []
    grid = lay_out(records.sites)
    ratios = _of_sites(found, "ratio")
    if grid.at and ratios:
        views = [
            View("Mismatch", _map_caption(found), _map(grid, ratios, found, "times calibration's leverage"))
        ]
        ranges = _of_sites(found, "range_ratio")
        if ranges:
            views.append(
                View("Range", _range_caption(found), _map(grid, ranges, found, "times calibration's range"))
            )
        charts.append(Chart("coverage-map", "Where production leaves calibration", tuple(views)))
    if found.gains:
        charts.append(_gains(found))
    return tuple(charts)


def _of_sites(found: CalibrationCheck, name: str) -> dict[str, float]:
    pairs = [(site, getattr(record, name)) for record in found.inputs for site in record.sites]
    return {site: value for site, value in pairs if value is not None}


def _map(grid: Grid, values: Mapping[str, float], found: CalibrationCheck, title: str) -> Figure:
    by_site = {site: record for record in found.inputs for site in record.sites}
    tips: dict[Place, str] = {}
    marks: dict[Place, str] = {}
    for place, cell in grid.at.items():
        known = [by_site[site.name] for site in cell.sites if site.name in by_site]
        if not known:
            continue
        worst = max(known, key=lambda record: record.ratio or 0.0)
        tips[place] = tooltip(
            [
                worst.sites[0],
                f"mismatch {number(worst.ratio)}" if worst.ratio is not None else "never reached",
                f"range {number(worst.range_ratio)}" if worst.range_ratio is not None else "",
                f"p {number(worst.p_value)}" if worst.p_value is not None else "",
            ]
        )
        if any(record.alarm for record in known):
            marks[place] = "!"
    return loss_map(grid, values, tips, title, marks)


def _map_caption(found: CalibrationCheck) -> str:
    alarms = [record for record in found.inputs if record.alarm]
    known = [record for record in found.inputs if record.ratio is not None]
    if not alarms:
        high = max((record.ratio or 0.0 for record in known), default=0.0)
        return f"No input is in alarm; the highest ratio is {number(high)}."
    blocks = sorted({record.block for record in alarms})
    where = f"blocks {blocks[0]} to {blocks[-1]}" if len(blocks) > 1 else f"block {blocks[0]}"
    worst = max(alarms, key=lambda record: record.ratio or 0.0)
    return (
        f"{plural(len(alarms), 'input')} marked ! in {where} get from production what calibration lacks, "
        f"most {worst.sites[0]}{f' ({number(worst.ratio)} times)' if worst.ratio else ''}."
    )


def _range_caption(found: CalibrationCheck) -> str:
    wider = [r for r in found.inputs if r.range_ratio is not None and r.range_ratio > 1.1]
    if not wider:
        return "Production stays within calibration's range everywhere: static activation scales would hold."
    worst = max(wider, key=lambda record: record.range_ratio or 0.0)
    return (
        f"At {plural(len(wider), 'input')} production exceeds calibration's range by more than a tenth, "
        f"most at {worst.sites[0]} ({number(worst.range_ratio or 0.0)} times): static activation scales "
        "would clip."
    )


def _gains(found: CalibrationCheck) -> Chart:
    """Mismatch left after each window that is added."""
    left = [1.0, *found.gains]
    drawn = figure(
        [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": list(range(len(left))),
                "y": left,
                "customdata": [
                    tooltip([f"{plural(i, 'window')} added: {percent(value)} left"])
                    for i, value in enumerate(left)
                ],
                "hovertemplate": "%{customdata}<extra></extra>",
                "line": {"color": PRIMARY, "width": 2},
                "marker": {"size": 7, "color": PRIMARY},
            }
        ],
        axis("windows of production added", nticks=8, rangemode="tozero"),
        axis("mismatch left", tickformat=".0%", range=[0, 1.05]),
        height=300,
        showlegend=False,
    )
    half = next((i for i, value in enumerate(left) if value <= 0.5), None)
    said = (
        f"{sentence(plural(half, 'window'))} of production would halve the mismatch in the worst directions"
        if half is not None
        else f"All {plural(len(found.gains), 'window')} proposed leave {percent(left[-1])} of the mismatch"
    )
    caption = f"{said}; the first alone leaves {percent(left[1])}."
    return Chart("coverage-gains", "What adding windows would cover", (View("", caption, drawn),))
