"""Rounds, learns and measures every row of the ablation; what the ledger holds is not done again.

Rows that round are the trials of one sweep: those that need the same statistics share a pass over the blocks,
and each is charged the whole pass and its own rounding, as if it had run alone. CPU seconds, since a busy
machine changes wall time and not what a method costs. Learned rows start from what another row rounded.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.ablation.rows import LEARNED, MADE, MIX, MIX_RTN, Made, Row
from benchmarks.ablation.table import Result
from quantriage.data.overlap import check_files, check_overlap
from quantriage.data.token_set import TokenSet
from quantriage.methods.awq import ScaledWeight
from quantriage.methods.learned_scales import LearnSettings, ScaleLearner
from quantriage.model.site import Site
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme
from quantriage.plan.sizes import bits_per_weight, site_bytes
from quantriage.records.ledger import Ledger
from quantriage.records.run_dir import PLAN, PROOF, RunDir
from quantriage.records.types import Plan, Proof
from quantriage.stream.compute import exact
from quantriage.stream.progress import Progress
from quantriage.stream.states import StateStore
from quantriage.stream.stream import Stream, StreamSettings
from quantriage.workflows.evaluate import evaluate
from quantriage.workflows.export import scale_dtype
from quantriage.workflows.learn_scales import train
from quantriage.workflows.meter import Meter
from quantriage.workflows.opened import OpenedModel, open_model, started_dtype
from quantriage.workflows.options import EvaluateOptions, QuantizeOptions, RecoverOptions
from quantriage.workflows.prove import sequence_kl
from quantriage.workflows.quantize import quantize
from quantriage.workflows.recover import recover
from quantriage.workflows.sweep_measure import Bench, Stored
from quantriage.workflows.sweep_rounding import RoundingJob, SchemeOf, round_trials
from quantriage.workflows.sweep_store import TrialStore
from quantriage.workflows.sweep_table import schemes_for
from quantriage.workflows.sweep_trials import Trial

_NAME = "ablation"
_STATE_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Ablation:
    """What is measured, on which tokens. mix: run `recover`.

    learn, learn_rounding: steps of rows that learn scales, and of those that learn codes; 0 leaves them out.
    """

    model: str
    out: Path
    calibration: tuple[Path, ...]
    evaluate: tuple[Path, ...]
    scheme: str = "w4a-g32"
    sequences: int = 64
    length: int = 256
    selection_sequences: int = 16
    evaluation_sequences: int = 16
    evaluation_length: int = 256
    learn: int = 20
    learn_rounding: int = 100
    mix: bool = True
    seed: int = 0


class _Cost(msgspec.Struct, frozen=True):
    """What the ledger keeps of a row that was made."""

    cpu_seconds: float
    kl: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Run:
    """One ablation under way."""

    of: Ablation
    rows: tuple[Row, ...]
    opened: OpenedModel
    scheme: Scheme
    schemes: SchemeOf
    calibration: TokenSet
    selection: TokenSet
    learning: TokenSet
    evaluation: TokenSet
    ledger: Ledger
    store: TrialStore
    progress: Progress

    @property
    def spill(self) -> Path:
        """Hidden states beyond the budget."""
        return self.of.out / "spill"

    def once(self, step: str, make: Callable[[], _Cost]) -> _Cost:
        """What `make` gives, or gave when the step was committed."""
        if step not in self.ledger.completed():
            self.ledger.commit(step, "", msgspec.to_builtins(make()))
        return msgspec.convert(self.ledger.completed()[step].payload, _Cost)

    def meter(self, tokens: TokenSet) -> Meter:
        """For measurements in float32."""
        cache = self.of.out / "cache"
        compute = exact(str(self.opened.compute.device))
        model, sites = self.opened.model, self.opened.map
        return Meter(model, sites, tokens, compute, cache, self.spill, _STATE_BYTES, self.progress)


def run_rows(ablation: Ablation, rows: Sequence[Row], progress: Progress) -> Iterator[Result]:
    """KL by sequence and CPU seconds, row by row. Peak memory: that of a sweep, or of `recover`."""
    run = _open(ablation, tuple(rows), progress)
    by_label: dict[str, Result] = {}
    for result in _rounded(run):
        by_label[result.label] = result
        yield result
    if ablation.learn:
        for number, (label, start) in enumerate(LEARNED.items(), start=len(rows)):
            if start in by_label:
                yield _learned(run, label, by_label[start], number)
    for label, made in MADE.items():
        if made.start in by_label and (ablation.learn_rounding or not made.learned):
            cost = run.once(label, partial(_quantized, run, made))
            yield Result(label, cost.kl, cost.cpu_seconds)
    if ablation.mix:
        yield from _mixed(run)
    shutil.rmtree(run.spill, ignore_errors=True)


def _open(ablation: Ablation, rows: tuple[Row, ...], progress: Progress) -> _Run:
    check_files(ablation.calibration, ablation.evaluate)
    ledger = ablation.out / "ledger.jsonl"
    opened = open_model(ablation.model, dtype=started_dtype(ledger))
    scheme = Scheme.parse(ablation.scheme, scale_dtype(opened.checkpoint))
    learning = ablation.learn * StreamSettings.for_length(ablation.length).batch
    count = ablation.sequences + ablation.selection_sequences + max(1, min(learning, 4 * ablation.sequences))
    windows = opened.tokens(ablation.calibration, count, ablation.length, "calibration", ablation.seed)
    calibration, rest = windows.split(ablation.sequences)
    selection, more = rest.split(ablation.selection_sequences)
    evaluation = opened.tokens(
        ablation.evaluate, ablation.evaluation_sequences, ablation.evaluation_length, "evaluation"
    )
    tokenizer = opened.checkpoint.tokenizer()
    check_overlap(windows, evaluation, lambda ids: str(tokenizer.decode(list(ids))))
    settings: dict[str, str | int | float | bool | None] = {
        "bench": _NAME,
        "model": opened.checkpoint.digest(),
        "windows": windows.digest,
        "evaluation": evaluation.digest,
        "scheme": ablation.scheme,
        "seed": ablation.seed,
        "learn": ablation.learn,
        "learn_rounding": ablation.learn_rounding,
        "rows": " | ".join(row.label for row in rows),
        "compute": opened.compute.dtype_name,
    }
    return _Run(
        of=ablation,
        rows=rows,
        opened=opened,
        scheme=scheme,
        schemes=schemes_for(scheme, opened.map.sites)[0],
        calibration=calibration,
        selection=selection,
        learning=more,
        evaluation=evaluation,
        ledger=Ledger(ledger, settings),
        store=TrialStore(ablation.out / "weights"),
        progress=progress,
    )


def _rounded(run: _Run) -> Iterator[Result]:
    """All rows that round by themselves, as trials of one sweep."""
    trials = tuple(Trial(row.label, None, run.scheme, row.rounder, row.needs) for row in run.rows)
    job = RoundingJob(
        choice=_NAME,
        opened=run.opened,
        calibration=run.calibration,
        trials=trials,
        schemes=(run.schemes,) * len(trials),
        store=run.store,
        ledger=run.ledger,
        spill=run.spill,
        state_bytes=_STATE_BYTES,
        seed=run.of.seed,
        progress=run.progress,
    )
    rounding = round_trials(job)
    for number, row in enumerate(run.rows):
        own = sum(tally.cpu_seconds for tally in rounding.tallies[number])
        yield Result(row.label, _kl(run, row.label, number), rounding.gathering[number] + own)


def _kl(run: _Run, label: str, number: int) -> tuple[float, ...]:
    """Mean KL of each evaluation sequence under what the store holds for a row."""
    bench = Bench(
        choice=_NAME,
        role="evaluation",
        opened=run.opened,
        tokens=run.evaluation,
        store=run.store,
        ledger=run.ledger,
        cache=run.of.out / "cache",
        spill=run.spill,
        state_bytes=_STATE_BYTES,
        progress=run.progress,
    )
    sites = {name: (number, scheme) for name, scheme in run.schemes.items() if scheme is not None}
    return bench.measure(Stored(label, sites, False)).kl


def _learned(run: _Run, label: str, start: Result, number: int) -> Result:
    """The row `start` with its scales learned, at its cost and that of learning."""
    origin = next(n for n, row in enumerate(run.rows) if row.label == start.label)
    cost = run.once(f"learned: {label}", lambda: _learn(run, origin, number))
    return Result(label, _kl(run, label, number), start.cpu_seconds + cost.cpu_seconds)


def _learn(run: _Run, origin: int, number: int) -> _Cost:
    schemes = {name: scheme for name, scheme in run.schemes.items() if scheme is not None}
    sites = tuple(site for site in run.opened.map.sites if site.name in schemes)
    began = time.process_time()

    def read(site: Site) -> QuantizedTensor:
        return run.store.read(origin, site, schemes[site.name]).quantized

    stream = Stream(
        run.opened.model,
        run.opened.map.sites,
        run.learning,
        run.opened.compute,
        StateStore(run.spill, _STATE_BYTES),
        StreamSettings.for_length(run.of.length),
        run.progress,
    )
    learner = ScaleLearner(stream, sites, read, run.of.seed)
    state = run.of.out / "learning.safetensors"
    state.unlink(missing_ok=True)  # of a killed try, whose time is lost
    best, _ = train(learner, LearnSettings(run.of.learn), run.meter(run.selection), state, run.progress)
    learner.restore(best)
    for block in range(run.opened.map.blocks):
        own = {s.name: ScaledWeight(learner.quantized(s), None) for s in sites if s.block == block}
        run.store.write(number, block, own)
    stream.states.clear()
    return _Cost(time.process_time() - began)


def _quantized(run: _Run, made: Made) -> _Cost:
    """What the command makes, as saved, evaluated."""
    of, began, folder = run.of, time.process_time(), run.of.out / "quantized"
    record = folder.with_name("quantized.run")
    shutil.rmtree(record, ignore_errors=True)  # of another row, or a killed try
    quantize(
        QuantizeOptions(
            model=of.model,
            calibration=of.calibration,
            out=folder,
            scheme=of.scheme,
            method=made.method,
            fold=made.fold,
            learn_rounding=of.learn_rounding if made.learned else 0,
            target="transformers",
            sequences=of.sequences,
            length=of.length,
            seed=of.seed,
            replace=True,
        ),
        run.progress,
    )
    taken = time.process_time() - began
    proof = evaluate(
        EvaluateOptions(
            reference=of.model,
            candidate=str(folder),
            text=of.evaluate,
            sequences=of.evaluation_sequences,
            length=of.evaluation_length,
        ),
        run.progress,
    )
    assert proof.tokens_digest == run.evaluation.digest
    return _Cost(taken, proof.results[-1].sequences.kl)


def _mixed(run: _Run) -> Iterator[Result]:
    """`recover` at the bits of the uniform scheme, and its mix rounded plainly."""
    folder = run.of.out / "recover"
    mixed = run.once(MIX, lambda: _recovered(run, folder))
    yield Result(MIX, mixed.kl, mixed.cpu_seconds)
    plan = RunDir(folder.with_name("recover.run")).read(PLAN, Plan)
    scales = scale_dtype(run.opened.checkpoint)
    schemes = {
        a.site: None if a.scheme == "none" else Scheme.named(a.scheme, scales) for a in plan.assignments
    }

    def plainly() -> _Cost:
        meter = run.meter(run.evaluation)
        return _Cost(mixed.cpu_seconds, tuple(sequence_kl(meter.nearest(schemes))))

    plain = run.once(MIX_RTN, plainly)
    yield Result(MIX_RTN, plain.kl, plain.cpu_seconds)


def _recovered(run: _Run, folder: Path) -> _Cost:
    of, began = run.of, time.process_time()
    infos = [site.info() for site in run.opened.map.sites]
    size = sum(site_bytes(run.schemes[site.name], site.shape) for site in infos)
    recover(
        RecoverOptions(
            model=of.model,
            calibration=of.calibration,
            evaluate=of.evaluate,
            out=folder,
            bpw=bits_per_weight(size, infos),
            target="transformers",
            sequences=of.sequences,
            length=of.length,
            selection_sequences=of.selection_sequences,
            evaluation_sequences=of.evaluation_sequences,
            evaluation_length=of.evaluation_length,
            seed=of.seed,
            replace=True,
        ),
        run.progress,
    )
    proof = RunDir(folder.with_name("recover.run")).read(PROOF, Proof)
    assert proof.tokens_digest == run.evaluation.digest
    return _Cost(time.process_time() - began, proof.results[-1].sequences.kl)
