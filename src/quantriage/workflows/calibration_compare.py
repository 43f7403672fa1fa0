"""`calibration compare`: one quantization for each set, judged on each domain, random tokens as the floor."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantriage.data.build import random_tokens
from quantriage.data.overlap import check_files, check_overlap
from quantriage.data.token_set import TokenSet
from quantriage.diagnose.coverage_pairs import mismatch_matrix
from quantriage.diagnose.coverage_verdict import agreements, matrix_sentence
from quantriage.errors import UsageError
from quantriage.evaluate.intervals import mean_interval, perplexity_interval
from quantriage.evaluate.tasks import Place, TaskRequests
from quantriage.evaluate.token_scores import TokenScores
from quantriage.records.calibration import MATRIX, CalibrationMatrix, MatrixCell, MatrixSet, SetTasks
from quantriage.records.run_dir import LOCK, SITES, SUMMARY, RunDir
from quantriage.records.types import DataIdentity, Interval, RunSummary
from quantriage.report.render import render
from quantriage.stream.compute import exact
from quantriage.stream.progress import Progress, silent
from quantriage.stream.stream import Stream
from quantriage.workflows.calibration_options import CompareSetsOptions
from quantriage.workflows.calibration_rounding import (
    Rounded,
    predicted_kl,
    round_on,
    schemes_for,
    stream_over,
)
from quantriage.workflows.meter import Meter
from quantriage.workflows.opened import OpenedModel, open_model
from quantriage.workflows.stages import StageClock
from quantriage.workflows.tasks import read_tasks, task_bench, task_identity

RANDOM, NONE = "random tokens", "no calibration (rtn)"
_NAME = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class _Domain:
    """A domain's windows: those that are measured, and further ones to predict from (None: no prediction)."""

    name: str
    measured: TokenSet
    sample: TokenSet | None


def compare_sets(options: CompareSetsOptions, progress: Progress = silent) -> CalibrationMatrix:
    """Round once for each set, measure on each domain, and hold predictions against the measurement.

    Peak memory: one block, the Hessians of its inputs for each text, and the state budget.
    """
    clock = StageClock()
    with clock.stage("open"):
        opened = open_model(options.model, options.device)
        sets, domains = _texts(options, opened)
        schemes = schemes_for(opened, options.scheme, options.method)
        asked = read_tasks(options.tasks, options.task_items, opened)
    rounded: dict[str, Rounded] = {}
    for name, tokens in sets.items():
        method = options.method if tokens is not None else "rtn"
        windows = tokens if tokens is not None else next(t for t in sets.values() if t is not None)
        folder = options.run / "sets" / _NAME.sub("-", name).strip("-")
        with clock.stage(f"round: {name}"):
            rounded[name] = round_on(
                opened, windows, schemes, method, folder, options.seed, options.state_bytes, progress
            )
    cells: dict[tuple[str, str], MatrixCell] = {}
    perplexities = []
    for domain in domains:
        with clock.stage(f"measure: {domain.name}"):
            perplexities.append(_measure(options, opened, domain, rounded, cells, progress))
    with clock.stage("tasks"):
        tasks = _on_tasks(options, opened, asked, rounded, progress)
    found = _matrix(options, sets, domains, perplexities, cells, tasks)
    RunDir(options.run).write(MATRIX, found)  # what was measured stands, whatever becomes of the prediction
    if options.prediction_sequences:
        with clock.stage("predict"):
            _predict(options, opened, sets, domains, rounded, cells, progress)
        found = _matrix(options, sets, domains, perplexities, cells, tasks)
    _write(options, opened, found, list(map(task_identity, asked)), clock)
    return found


def _matrix(
    options: CompareSetsOptions,
    sets: Mapping[str, TokenSet | None],
    domains: Sequence[_Domain],
    perplexities: Sequence[Interval],
    cells: Mapping[tuple[str, str], MatrixCell],
    tasks: Sequence[SetTasks],
) -> CalibrationMatrix:
    rows = tuple(_row(name, tokens) for name, tokens in sets.items())
    return CalibrationMatrix(
        scheme=options.scheme,
        method=options.method,
        sets=rows,
        domains=tuple(domain.measured.identity("evaluation") for domain in domains),
        domain_names=tuple(domain.name for domain in domains),
        reference_perplexity=tuple(perplexities),
        cells=tuple(cells.values()),
        agreements=agreements(tuple(cells.values())),
        sentence=matrix_sentence(rows, tuple(cells.values())),
        tasks=tuple(tasks),
    )


def named_path(text: str) -> tuple[str, Path]:
    """[NAME=]PATH; the name is the file's stem unless given."""
    name, separator, path = text.partition("=")
    return (name, Path(path)) if separator and name and path else (Path(text).stem, Path(text))


def _texts(
    options: CompareSetsOptions, opened: OpenedModel
) -> tuple[dict[str, TokenSet | None], list[_Domain]]:
    """Sets by name, the floors last, and the domains; refused where a set holds a domain's text."""
    paths = dict(map(named_path, options.set))
    judged = dict(map(named_path, options.domain))
    if len(paths) < len(options.set) or len(judged) < len(options.domain):
        raise UsageError("two sets or two domains have one name; write NAME=PATH to tell them apart")
    check_files(tuple(paths.values()), tuple(judged.values()))
    sets: dict[str, TokenSet | None] = {
        name: opened.tokens((path,), options.sequences, options.length, "calibration", options.seed)
        for name, path in paths.items()
    }
    tokenizer = opened.checkpoint.tokenizer()
    domains = []
    count, more = options.evaluation_sequences, options.prediction_sequences
    for name, path in judged.items():
        windows = opened.tokens((path,), count + more, options.length, "evaluation")
        for tokens in sets.values():
            if tokens is not None:
                check_overlap(tokens, windows, lambda ids: str(tokenizer.decode(list(ids))))
        measured, sample = windows.split(count)
        domains.append(_Domain(name, measured, sample if more else None))
    rows = opened.model.vocab_size
    sets[RANDOM] = random_tokens(tokenizer, rows, options.sequences, options.length, options.seed)
    sets[NONE] = None
    return sets, domains


def _row(name: str, tokens: TokenSet | None) -> MatrixSet:
    if tokens is None:
        return MatrixSet(name=name, kind="none", tokens=None)
    kind = "random" if name == RANDOM else "text"
    return MatrixSet(name=name, kind=kind, tokens=tokens.identity("calibration"))  # type: ignore[arg-type]


def _measure(
    options: CompareSetsOptions,
    opened: OpenedModel,
    domain: _Domain,
    rounded: Mapping[str, Rounded],
    cells: dict[tuple[str, str], MatrixCell],
    progress: Progress,
) -> Interval:
    """Every set's quantization on one domain, in float32; returns the reference's perplexity."""
    meter = Meter(
        opened.model,
        opened.map,
        domain.measured,
        exact(options.device),
        options.run / "cache",
        options.run / "spill",
        options.state_bytes,
        progress,
        f"measure on {domain.name}",
    )
    scores: TokenScores | None = None
    sites = opened.map.by_name()
    for name, found in rounded.items():
        scores = meter.weights(found.weights(sites))
        kl = scores.kl.double().mean(dim=1).tolist()
        cells[name, domain.name] = MatrixCell(
            set=name,
            domain=domain.name,
            kl=mean_interval(kl),
            perplexity=perplexity_interval(scores.nll.double().mean(dim=1).tolist()),
            sequence_kl=tuple(kl),
        )
    assert scores is not None
    return perplexity_interval(scores.reference_nll.double().mean(dim=1).tolist())


def _on_tasks(
    options: CompareSetsOptions,
    opened: OpenedModel,
    asked: tuple[TaskRequests, ...],
    rounded: Mapping[str, Rounded],
    progress: Progress,
) -> list[SetTasks]:
    """Every set's quantization on the tasks, if some are given, in float32."""
    if not asked:
        return []
    place = Place(exact(options.device), options.run / "spill", options.state_bytes, progress)
    bench = task_bench(asked, opened, place)
    sites = opened.map.by_name()
    return [
        SetTasks(set=name, run=bench.of(opened.model, opened.map, found.weights(sites)))
        for name, found in rounded.items()
    ]


def _predict(
    options: CompareSetsOptions,
    opened: OpenedModel,
    sets: Mapping[str, TokenSet | None],
    domains: Sequence[_Domain],
    rounded: Mapping[str, Rounded],
    cells: dict[tuple[str, str], MatrixCell],
    progress: Progress,
) -> None:
    """What `check` would have said of each pair, from windows that were not measured."""
    given = {name: tokens for name, tokens in sets.items() if tokens is not None}
    samples = {domain.name: domain.sample for domain in domains if domain.sample is not None}

    def stream(tokens: TokenSet, name: str) -> Stream:
        return stream_over(opened, tokens, options.run / "spill" / name, options.state_bytes, progress)

    ratios = mismatch_matrix(
        [stream(tokens, f"set-{i}") for i, tokens in enumerate(given.values())],
        [stream(tokens, f"domain-{i}") for i, tokens in enumerate(samples.values())],
    )
    mismatches = {
        (name, domain): ratios[row][column]
        for row, name in enumerate(given)
        for column, domain in enumerate(samples)
    }
    for domain, tokens in samples.items():
        predicted = predicted_kl(stream(tokens, "predict"), rounded, options.seed)
        for name, value in predicted.items():
            cell = cells[name, domain]
            cells[name, domain] = MatrixCell(
                set=name,
                domain=domain,
                kl=cell.kl,
                perplexity=cell.perplexity,
                sequence_kl=cell.sequence_kl,
                predicted_kl=value,
                mismatch=mismatches.get((name, domain)),
            )


def _write(
    options: CompareSetsOptions,
    opened: OpenedModel,
    found: CalibrationMatrix,
    asked: Sequence[DataIdentity],
    clock: StageClock,
) -> None:
    run = RunDir(options.run)
    run.write(MATRIX, found)
    run.write_many(SITES, [site.info() for site in opened.map.sites])
    sets = [row.tokens for row in found.sets if row.tokens is not None]
    run.write(
        LOCK,
        opened.lock(
            command="calibration compare",
            data=[*sets, *found.domains, *asked],
            seed=options.seed,
            settings={"scheme": options.scheme, "method": options.method},
        ),
    )
    summary = RunSummary(
        title=f"Calibration sets for {opened.label}",
        model=opened.source,
        stages=tuple(clock.stages),
    )
    run.write(SUMMARY, summary)
    render(options.run)
