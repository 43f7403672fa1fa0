"""Multiple-choice tasks: accuracies side by side, the paired difference, and how many answers changed."""

from collections.abc import Sequence
from dataclasses import dataclass

from quantriage.records.tasks import TaskMeasure, TaskRun
from quantriage.records.types import Interval
from quantriage.report.chart import INK, MUTED, PRIMARY, Chart, View, axis, figure, points, row_name
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.wording import number, percent, plural, tooltip

_ROW = 46  # pixels
_LEVEL = 0.05
POOLED = "all of them"


@dataclass(frozen=True)
class Row:
    """One task by one metric, in ready words."""

    name: str
    metric: str
    reference: str
    reference_between: str
    candidate: str
    candidate_between: str
    difference: str
    difference_between: str
    lost: str
    won: str
    changed: str
    p_value: str
    meaning: str
    resolution: str


@dataclass(frozen=True)
class TasksContent:
    """The table and what to conclude from it."""

    rows: tuple[Row, ...]
    caption: str
    notes: tuple[str, ...]


def build(records: RunRecords) -> Section | None:
    """From an evaluation's tasks, or those of a comparison of calibration sets; left out without."""
    matrix = records.calibration_matrix
    runs = {f"{one.set}: ": one.run for one in matrix.tasks} if matrix else {}
    lead = "Accuracy after calibration on each set, against the unquantized model on the same items."
    if records.tasks is not None:
        runs, lead = {"": records.tasks}, records.tasks.sentence
    if not runs:
        return None
    named = [(f"{prefix}{name}", found) for prefix, run in runs.items() for name, found in _measures(run)]
    first = next(iter(runs.values()))
    content = TasksContent(
        rows=tuple(_row(name, found) for name, found in named),
        caption=_caption(first) if len(runs) == 1 else "",
        notes=_notes(first),
    )
    return Section("tasks", "Multiple-choice tasks", lead, content, (_chart(named),))


def _measures(run: TaskRun) -> list[tuple[str, TaskMeasure]]:
    """By name, all items together last."""
    named = [(task.name, found) for task in run.tasks for found in task.measures]
    return [*named, *([(POOLED, run.pooled)] if run.pooled else [])]


def _row(name: str, found: TaskMeasure) -> Row:
    return Row(
        name=name,
        metric=f"{found.metric}, {plural(found.items, 'item')}",
        reference=_points(found.reference.value),
        reference_between=_span(found.reference),
        candidate=_points(found.candidate.value),
        candidate_between=_span(found.candidate),
        difference=_signed(found.difference.value),
        difference_between=f"{_signed(found.difference.low)} to {_signed(found.difference.high)}",
        lost=str(found.lost),
        won=str(found.won),
        changed=percent(found.changed / found.items),
        p_value=number(found.p_value, 2),
        meaning=_meaning(found),
        resolution=_points(found.resolution),
    )


def _meaning(found: TaskMeasure) -> str:
    return "beyond chance" if found.p_value < _LEVEL else "within chance"


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def _signed(share: float) -> str:
    text = f"{abs(100 * share):.1f}"
    return text if text == "0.0" else f"{'−' if share < 0 else '+'}{text}"


def _span(interval: Interval) -> str:
    return f"{_points(interval.low)} to {_points(interval.high)}"


def _caption(run: TaskRun) -> str:
    """Whether the changes cancel, which accuracy alone would hide."""
    found = run.pooled or run.tasks[0].measures[0]
    share = percent(found.changed / found.items)
    text = f"The candidate chooses another answer than the reference in {share} of {found.items:,} items"
    if not found.lost + found.won:
        return f"{text}; none of these was or became right."
    return (
        f"{text}: {found.lost} were right and are now wrong, {found.won} the reverse. Accuracy shows only "
        f"the difference of the two, {abs(found.lost - found.won)}."
    )


def _notes(run: TaskRun) -> tuple[str, ...]:
    asked = ", ".join(f"{len(t.items):,} of {t.available:,} of {t.name} ({t.source})" for t in run.tasks)
    return (
        f"Items: {asked}, a fixed sample where not all, the same for both models",
        "Prompts are those of lm-evaluation-harness without examples; acc takes the choice of the largest "
        "log-likelihood, acc_norm that of the largest per character",
        "Accuracies have Wilson's 95% interval, differences the paired bootstrap's over items; p is "
        "McNemar's, exact, on the answers that turned",
    )


def _chart(named: Sequence[tuple[str, TaskMeasure]]) -> Chart:
    rows = [float(len(named) - 1 - i) for i in range(len(named))]
    gaps = [found.difference for _, found in named]
    values = [100 * gap.value for gap in gaps]
    marks = points(
        values,
        rows,
        [_tip(name, found) for name, found in named],
        {"size": 11, "color": PRIMARY},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [100 * (gap.high - gap.value) for gap in gaps],
            "arrayminus": [100 * (gap.value - gap.low) for gap in gaps],
            "color": MUTED,
            "thickness": 1.5,
            "width": 5,
        },
    )
    zero = {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper"}
    names = [
        row_name(f"{name}, {found.metric}", row + 0.14, 44)
        for (name, found), row in zip(named, rows, strict=True)
    ]
    most = max(1.0, *(100 * abs(end) for gap in gaps for end in (gap.low, gap.high)))
    drawn = figure(
        [marks],
        axis("accuracy, candidate minus reference, points", nticks=7, range=[-1.08 * most, 1.08 * most]),
        axis("", showticklabels=False, ticks="", showgrid=False, range=[-0.45, len(named) - 0.4]),
        height=80 + _ROW * len(named),
        showlegend=False,
        annotations=names,
        shapes=[zero | {"line": {"color": INK, "width": 1, "dash": "dot"}}],
    )
    return Chart("task-differences", "", (View("Difference", _chart_caption(named), drawn),))


def _tip(name: str, found: TaskMeasure) -> str:
    gap = found.difference
    return tooltip(
        [
            f"{name}, {found.metric}",
            f"{_points(found.reference.value)} to {_points(found.candidate.value)} of 100",
            f"{_signed(gap.value)} points, {_signed(gap.low)} to {_signed(gap.high)}",
            f"{found.lost} lost, {found.won} won, p {number(found.p_value, 2)}",
        ]
    )


def _chart_caption(named: Sequence[tuple[str, TaskMeasure]]) -> str:
    worse = [n for n, f in named if f.p_value < _LEVEL and f.difference.value < 0]
    better = [n for n, f in named if f.p_value < _LEVEL and f.difference.value > 0]
    if not worse and not better:
        finest = min(found.resolution for _, found in named)
        return (
            "No difference is larger than chance explains: these items show no loss, and could not have "
            f"shown one below {_points(finest)} points."
        )
    said = [f"worse beyond chance in {', '.join(dict.fromkeys(worse))}"] if worse else []
    said += [f"better in {', '.join(dict.fromkeys(better))}"] if better else []
    return f"The candidate is {' and '.join(said)}; the other lines are within chance."
