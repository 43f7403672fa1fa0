"""Calibration sets: how one was built, and what each of several loses on each domain.

The heat map colours a set by what it loses over the best of its domain: domains differ in how much any
rounding costs on them, which would drown the choice of the set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quantriage.records.calibration import CalibrationMatrix, CalibrationSet, MatrixCell, PairAgreement
from quantriage.report.chart import (
    LOSS_RAMP,
    SERIES,
    Chart,
    Figure,
    View,
    axis,
    figure,
    log_axis,
    points,
)
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.wording import (
    chart_text,
    clip,
    listed,
    number,
    percent,
    plural,
    sentence,
    span,
    tooltip,
)

_LINE = 13  # letters of a row's label before it is broken
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")

Cells = dict[tuple[str, str], MatrixCell]


@dataclass(frozen=True)
class SourceRow:
    """What one source gave to the set."""

    source: str
    share: str
    windows: str
    tokens: str
    kept: str


@dataclass(frozen=True)
class DroppedRow:
    """Passages that were left out."""

    source: str
    reason: str
    passages: str
    example: str


@dataclass(frozen=True)
class DomainRow:
    """Which set to take for a domain, and what the wrong one costs."""

    domain: str
    best: str
    kl: str
    between: str
    perplexity: str
    reference: str
    worst: str
    random: str


@dataclass(frozen=True)
class CalibrationContent:
    """The tables of the section; empty where their record is missing."""

    said: str
    warnings: tuple[str, ...]
    sources: tuple[SourceRow, ...]
    sources_caption: str
    dropped: tuple[DroppedRow, ...]
    dropped_caption: str
    domains: tuple[DomainRow, ...]
    domains_caption: str


def build(records: RunRecords) -> Section | None:
    """From a built set or a comparison of sets; left out without."""
    made, found = records.calibration_set, records.calibration_matrix
    if made is None and found is None:
        return None
    content = CalibrationContent(
        said=found.sentence if found else "",
        warnings=tuple(finding.text for finding in made.findings) if made else (),
        sources=_sources(made) if made else (),
        sources_caption=_sources_caption(made) if made else "",
        dropped=_dropped(made) if made else (),
        dropped_caption=_dropped_caption(made) if made else "",
        domains=_domains(found) if found else (),
        domains_caption=_domains_caption(found) if found else "",
    )
    lead = (
        f"One quantization ({found.scheme}, {found.method}) for each set, judged on each domain."
        if found
        else "What the windows were taken from, and what was left out."
    )
    return Section("calibration", "Calibration text", lead, content, _charts(found) if found else ())


def _sources(made: CalibrationSet) -> tuple[SourceRow, ...]:
    return tuple(
        SourceRow(
            clip(part.source, 80),
            percent(part.windows / made.tokens.sequences),
            f"{part.windows:,}",
            f"{part.tokens:,}",
            f"{part.kept:,} of {part.passages:,}",
        )
        for part in made.sources
    )


def _sources_caption(made: CalibrationSet) -> str:
    tokens = made.tokens.sequences * made.tokens.length
    return (
        f"{tokens:,} tokens in {made.tokens.sequences:,} windows of {made.tokens.length:,}, "
        f"{number(made.tokens_per_input)} for each input of the widest layer."
    )


def _dropped(made: CalibrationSet) -> tuple[DroppedRow, ...]:
    return tuple(
        DroppedRow(clip(lost.source, 80), lost.reason, f"{lost.passages:,}", lost.example)
        for lost in made.dropped
    )


def _dropped_caption(made: CalibrationSet) -> str:
    lost = sum(dropped.passages for dropped in made.dropped)
    read = sum(part.passages for part in made.sources)
    if not lost:
        return "Nothing was dropped: no passage repeats another or itself."
    most = max(made.dropped, key=lambda dropped: dropped.passages)
    return (
        f"{plural(lost, 'passage')} of {read:,} ({percent(lost / read)}) add nothing, most as {most.reason} "
        f"in {clip(most.source, 60)}."
    )


def _by_place(found: CalibrationMatrix) -> Cells:
    return {(cell.set, cell.domain): cell for cell in found.cells}


def _domains(found: CalibrationMatrix) -> tuple[DomainRow, ...]:
    cells = _by_place(found)
    texts = [row.name for row in found.sets if row.kind == "text"]
    random = next((row.name for row in found.sets if row.kind == "random"), None)
    rows = []
    for domain, perplexity in zip(found.domain_names, found.reference_perplexity, strict=True):
        ordered = sorted((cells[name, domain] for name in texts), key=lambda cell: cell.kl.value)
        best, worst = ordered[0], ordered[-1]
        rows.append(
            DomainRow(
                domain=domain,
                best=best.set,
                kl=number(best.kl.value),
                between=span(best.kl),
                perplexity=number(best.perplexity.value),
                reference=number(perplexity.value),
                worst=f"{worst.set}, {_more(worst, best)}" if worst is not best else "–",
                random=_more(cells[random, domain], best) if random else "–",
            )
        )
    return tuple(rows)


def _more(cell: MatrixCell, best: MatrixCell) -> str:
    """What another set loses over the best, as a part of it."""
    if best.kl.value <= 0:
        return number(cell.kl.value)
    change = cell.kl.value / best.kl.value - 1
    return f"{'+' if change >= 0 else '−'}{percent(abs(change))}"


def _domains_caption(found: CalibrationMatrix) -> str:
    cells = _by_place(found)
    names = {row.name for row in found.sets if row.kind == "text"}
    own = [domain for domain in found.domain_names if domain in names]
    won = [domain for domain in own if min(names, key=lambda name: cells[name, domain].kl.value) == domain]
    if not own:
        return "No set bears the name of a domain, so which text is whose own is not known here."
    if len(won) == len(own):
        return f"On each of {plural(len(own), 'domain')} text of the same kind is the best calibration."
    kept = f"{listed(won)}: text of the same kind is best" if won else "Text of the same kind is nowhere best"
    lost = [domain for domain in own if domain not in won]
    return f"{sentence(kept)}; on {listed(lost)} another text does as well or better."


def _charts(found: CalibrationMatrix) -> tuple[Chart, ...]:
    cells = _by_place(found)

    def over_best(cell: MatrixCell) -> float:
        texts = [c.kl.value for c in found.cells if c.domain == cell.domain]
        return cell.kl.value / max(1e-12, min(texts))

    views = (
        View(
            "Over the best",
            f"{_best_caption(found)} In each column light is best.",
            _heat(found, cells, over_best, "KL over the best"),
        ),
        View("KL", found.sentence, _heat(found, cells, lambda cell: cell.kl.value, "KL, nats per token")),
        View(
            "Perplexity",
            _perplexity_caption(found),
            _heat(found, cells, lambda cell: cell.perplexity.value, "perplexity"),
        ),
    )
    charts = [Chart("calibration-matrix", "Set by domain", views)]
    predictions = [_prediction(found, agreement) for agreement in found.agreements]
    if predictions:
        charts.append(Chart("calibration-predictions", "Predicted against measured", tuple(predictions)))
    return tuple(charts)


def _heat(found: CalibrationMatrix, cells: Cells, value: Callable[[MatrixCell], float], title: str) -> Figure:
    """Rows are sets, columns domains; each column is coloured from its own best to its own worst."""
    names = [row.name for row in found.sets]
    rows = [[cells[name, domain] for domain in found.domain_names] for name in names]
    columns = list(zip(*rows, strict=True))
    shades = [
        [_shade(value(cell), [value(c) for c in columns[i]]) for i, cell in enumerate(row)] for row in rows
    ]
    heat: dict[str, object] = {
        "type": "heatmap",
        "x": list(range(len(found.domain_names))),
        "y": list(range(len(names))),
        "z": shades,
        "text": [[number(value(cell)) for cell in row] for row in rows],
        "texttemplate": "%{text}",
        "textfont": {"size": 12},
        "customdata": [[_tip(cell) for cell in row] for row in rows],
        "hovertemplate": "%{customdata}<extra></extra>",
        "colorscale": LOSS_RAMP,
        "zmin": 0,
        "zmax": 1,
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }
    return figure(
        [heat],
        axis(
            "judged on",
            side="top",
            tickvals=list(range(len(found.domain_names))),
            ticktext=[_broken(name, _LINE) for name in found.domain_names],
            showgrid=False,
        ),
        axis(
            "",
            autorange="reversed",
            tickvals=list(range(len(names))),
            ticktext=[_broken(name, _LINE) for name in names],
            showgrid=False,
        ),
        height=130 + 46 * len(names),
        annotations=[
            {
                "text": chart_text(title),
                "showarrow": False,
                "xref": "paper",
                "yref": "paper",
                "x": 0,
                "xanchor": "left",
                "y": 0,
                "yanchor": "top",
                "yshift": -6,
                "font": {"size": 12},
            }
        ],
        margin={"l": 8, "r": 12, "t": 12, "b": 34},
    )


def _shade(value: float, column: Sequence[float]) -> float:
    low, high = min(column), max(column)
    return (value - low) / (high - low) if high > low else 0.0


def _broken(name: str, width: int) -> str:
    """A label of two lines or more where its words allow it."""
    lines = [""]
    for word in clip(name, 3 * width).split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(map(chart_text, lines))


def _tip(cell: MatrixCell) -> str:
    lines = [
        f"calibrated on {cell.set}, judged on {cell.domain}",
        f"KL {number(cell.kl.value)} ({span(cell.kl)})",
        f"perplexity {number(cell.perplexity.value)} ({span(cell.perplexity)})",
    ]
    if cell.predicted_kl is not None:
        lines.append(f"predicted KL {number(cell.predicted_kl)}")
    if cell.mismatch is not None:
        lines.append(f"Hessian mismatch {number(cell.mismatch)}")
    return tooltip(lines)


def _best_caption(found: CalibrationMatrix) -> str:
    """What the wrong text costs at worst, and what random tokens cost."""
    cells = _by_place(found)
    texts = [row.name for row in found.sets if row.kind == "text"]
    costs = []
    for domain in found.domain_names:
        ordered = sorted((cells[name, domain] for name in texts), key=lambda cell: cell.kl.value)
        costs.append((ordered[-1].kl.value / max(1e-12, ordered[0].kl.value), ordered[-1], ordered[0]))
    times, worst, best = max(costs, key=lambda cost: cost[0])
    said = f"On {worst.domain}, calibrating on {worst.set} loses {number(times)} times what {best.set} loses"
    if len(texts) < 2:
        said = f"{texts[0]} is the only text here"
    random = next((row.name for row in found.sets if row.kind == "random"), None)
    if random is None:
        return f"{said}."
    over = [
        cells[random, domain].kl.value > worst.kl.value
        for domain, (_, worst, _) in zip(found.domain_names, costs, strict=True)
    ]
    return f"{said}; random tokens lose more than every text on {sum(over)} of {plural(len(over), 'domain')}."


def _perplexity_caption(found: CalibrationMatrix) -> str:
    reference = [
        f"{domain} {number(value.value)}"
        for domain, value in zip(found.domain_names, found.reference_perplexity, strict=True)
    ]
    return (
        f"The full-precision model has perplexity {listed(reference, 8)}: hold each column against its own."
    )


def _prediction(found: CalibrationMatrix, agreement: PairAgreement) -> View:
    """Every pair of set and domain: predicted across, measured up."""
    pairs = [(cell, value) for cell in found.cells if (value := _predicted(cell, agreement)) is not None]
    traces = []
    for i, domain in enumerate(found.domain_names):
        mine = [(cell, value) for cell, value in pairs if cell.domain == domain and value > 0]
        if mine:
            traces.append(
                points(
                    [value for _, value in mine],
                    [cell.kl.value for cell, _ in mine],
                    [_tip(cell) for cell, _ in mine],
                    {"size": 9, "color": SERIES[i % len(SERIES)], "symbol": _SYMBOLS[i % len(_SYMBOLS)]},
                    chart_text(clip(domain, 24)),
                )
            )
    xs, ys = [value for _, value in pairs], [cell.kl.value for cell, _ in pairs]
    drawn = figure(
        traces,
        log_axis(agreement.predictor, [x for x in xs if x > 0] or [1.0]),
        log_axis("measured KL", [y for y in ys if y > 0] or [1.0]),
        height=400,
        margin={"l": 8, "r": 12, "t": 60, "b": 8},
    )
    good = abs(agreement.spearman) >= 0.7 and agreement.within_domains >= 0.5
    said = "so it may stand in for the measurement" if good else "so measure before you decide"
    caption = (
        f"{sentence(agreement.predictor)} ranks {plural(agreement.pairs, 'pair')} of set and domain with "
        f"Spearman {agreement.spearman:.2f} (p {_p(agreement.p_value)}); among the sets of one domain "
        f"{agreement.within_domains:.2f}, {said}."
    )
    return View(sentence(agreement.predictor), caption, drawn)


def _p(value: float) -> str:
    return "below 0.0001" if value < 1e-4 else number(value, 2)


def _predicted(cell: MatrixCell, agreement: PairAgreement) -> float | None:
    return cell.predicted_kl if agreement.predictor == "predicted KL" else cell.mismatch
