"""`sweep`: vary one choice of a quantization and hold the rest; recommend, and confirm on held-out text.

round every trial -> measure each on selection text -> recommend by paired differences -> measure the
recommended one and its rival on held-out text. Weights are measured in memory, from what was rounded; nothing
is exported, so a recommendation is carried out with `quantize` or `recover`.
"""

import resource
import shutil
import time
from collections import Counter
from dataclasses import dataclass, replace

from quantriage.data.overlap import check_files, check_overlap
from quantriage.data.token_set import TokenSet
from quantriage.data.windows import leading_tokens
from quantriage.diagnose.sweep_advice import HeldOut, advise, confirm
from quantriage.evaluate.intervals import perplexity_interval
from quantriage.numerics.schemes import Scheme
from quantriage.records.ledger import Ledger
from quantriage.records.run_dir import LOCK, SITES, SUMMARY, SWEEP, RunDir
from quantriage.records.sweep import Sweep, SweepRun
from quantriage.records.types import RunSummary
from quantriage.report.render import render
from quantriage.stream.progress import Progress, silent
from quantriage.workflows.export import scale_dtype
from quantriage.workflows.opened import OpenedModel, open_model, started_dtype
from quantriage.workflows.stages import StageClock
from quantriage.workflows.sweep_measure import Bench, Measured, Stored
from quantriage.workflows.sweep_options import CHOICES, SweepOptions
from quantriage.workflows.sweep_rounding import RoundingJob, round_trials
from quantriage.workflows.sweep_store import TrialStore
from quantriage.workflows.sweep_table import (
    Picks,
    TableSource,
    best_by,
    measure_named,
    optima,
    schemes_for,
    variants,
)
from quantriage.workflows.sweep_trials import Asked, Choice, Pick, trials_of

LEDGER = "sweep-ledger.jsonl"
_STORE = "sweep-weights"
_SPILL = "spill"
_CACHE = "cache"
_WITH_OPTIMA = {"clipping": "output", "awq-alpha": "output", "smoothquant-alpha": "joint"}


@dataclass(frozen=True)
class _Run:
    """What every choice of one command reads."""

    options: SweepOptions
    opened: OpenedModel
    calibration: TokenSet
    selection: TokenSet
    evaluation: TokenSet
    asked: Asked
    ledger: Ledger
    progress: Progress


def sweep(options: SweepOptions, progress: Progress = silent) -> SweepRun:
    """Sweep every choice asked for; records of other choices in the run folder are kept."""
    clock = StageClock()
    with clock.stage("open"):
        run = _open(options, progress)
    records = RunDir(options.run)
    done = {s.choice: s for s in records.read(SWEEP, SweepRun).sweeps} if records.has(SWEEP) else {}
    for choice in options.choice:
        with clock.stage(choice):
            done[choice] = _sweep_choice(run, choice)
        result = SweepRun(sweeps=tuple(done[name] for name in CHOICES if name in done))
        records.write(SWEEP, result)
    _write_rest(run, records, clock)
    render(options.run)
    shutil.rmtree(options.run / _SPILL, ignore_errors=True)
    return result


def _open(options: SweepOptions, progress: Progress) -> _Run:
    check_files(options.calibration, options.evaluate)
    opened = open_model(options.model, options.device, started_dtype(options.run / LEDGER))
    scheme = Scheme.parse(options.scheme, scale_dtype(opened.checkpoint))
    windows = opened.tokens(
        options.calibration,
        options.sequences + options.selection_sequences,
        options.length,
        "calibration",
        options.seed,
    )
    calibration, selection = windows.split(options.sequences)
    evaluation = opened.tokens(
        options.evaluate, options.evaluation_sequences, options.evaluation_length, "evaluation"
    )
    tokenizer = opened.checkpoint.tokenizer()
    check_overlap(windows, evaluation, lambda ids: str(tokenizer.decode(list(ids))))
    settings: dict[str, str | int | float | bool | None] = {
        "verb": "sweep",
        "model": opened.checkpoint.digest(),
        "calibration": calibration.digest,
        "selection": selection.digest,
        "evaluation": evaluation.digest,
        "scheme": options.scheme,
        "method": options.method,
        "seed": options.seed,
        "compute": opened.compute.dtype_name,
    }
    asked = Asked(scheme, options.method, calibration, len(leading_tokens(tokenizer)))
    ledger = Ledger(options.run / LEDGER, settings)
    return _Run(options, opened, calibration, selection, evaluation, asked, ledger, progress)


def _sweep_choice(run: _Run, name: str) -> Sweep:
    started = time.perf_counter()
    choice = trials_of(name, run.asked)
    sites = run.opened.map.sites
    resolved = [schemes_for(trial.scheme, sites) for trial in choice.trials]
    store = TrialStore(run.options.run / _STORE / name)
    job = RoundingJob(
        choice=name,
        opened=run.opened,
        calibration=run.calibration,
        trials=choice.trials,
        schemes=tuple(schemes for schemes, _ in resolved),
        store=store,
        ledger=run.ledger,
        spill=run.options.run / _SPILL,
        state_bytes=run.options.state_bytes,
        seed=run.options.seed,
        progress=run.progress,
    )
    rounding = round_trials(job)
    source = TableSource(
        trials=choice.trials,
        schemes=job.schemes,
        findings=tuple(findings for _, findings in resolved),
        chosen={},
        tallies=rounding.tallies,
        gathering=rounding.gathering,
        measured={},
        baseline=next(n for n, t in enumerate(choice.trials) if t.label == choice.baseline),
        calibration_tokens=run.calibration.tokens.numel(),
    )
    source = replace(source, chosen=_chosen(source, run))
    bench = _bench(run, choice, "selection", run.selection, store)
    source = replace(source, measured=_measure_all(run, source, bench))
    record = _conclude(run, choice, source, store, started)
    store.clear()
    return record


def _chosen(source: TableSource, run: _Run) -> dict[int, Picks]:
    """Where each site's weight comes from: its own trial, or for a pick the best of the others."""
    sites, found = run.opened.map.sites, dict[int, Picks]()
    for number, trial in enumerate(source.trials):
        if isinstance(trial.rounding, Pick):
            pick = trial.rounding
            among = {n: source.tallies[n] for n, t in enumerate(source.trials) if t.label in pick.among}
            found[number] = best_by(measure_named(pick.by), among, sites, pick.shared_input)
        else:
            found[number] = {tally.site: number for tally in source.tallies[number]}
    return found


def _bench(run: _Run, choice: Choice, role: str, tokens: TokenSet, store: TrialStore) -> Bench:
    return Bench(
        choice=choice.name,
        role=role,
        opened=run.opened,
        tokens=tokens,
        store=store,
        ledger=run.ledger,
        cache=run.options.run / _CACHE,
        spill=run.options.run / _SPILL,
        state_bytes=run.options.state_bytes,
        progress=run.progress,
    )


def _stored(source: TableSource, number: int) -> Stored:
    trial = source.trials[number]
    sites = {}
    for site, taken in source.chosen[number].items():
        scheme = source.schemes[taken][site]
        assert scheme is not None  # a site left dense has no tally
        sites[site] = taken, scheme
    return Stored(trial.label, sites, trial.activations)


def _measure_all(run: _Run, source: TableSource, bench: Bench) -> dict[int, Measured]:
    found = {}
    for number in range(len(source.trials)):
        found[number] = bench.measure(_stored(source, number))
        run.progress(f"{bench.choice}: trials measured", number + 1, len(source.trials))
    return found


def _conclude(run: _Run, choice: Choice, source: TableSource, store: TrialStore, started: float) -> Sweep:
    rows = variants(source, run.opened.map)
    contenders = frozenset(trial.label for trial in choice.trials if trial.contends)
    advice = advise(rows, choice.baseline, choice.rule, contenders)
    bench = _bench(run, choice, "held-out", run.evaluation, store)
    numbers = {trial.label: n for n, trial in enumerate(choice.trials)}
    held_out: dict[str, HeldOut] = {}
    reference: tuple[float, ...] = ()
    for label in (advice.recommended, advice.against):
        measured = bench.measure(_stored(source, numbers[label]))
        reference = measured.reference_nll
        held_out[label] = HeldOut(label, rows[numbers[label]].bits_per_weight, measured.kl, measured.nll)
    by_output = _WITH_OPTIMA.get(choice.name)
    return Sweep(
        choice=choice.name,
        question=CHOICES[choice.name],
        model=run.opened.source,
        scheme=str(run.asked.scheme if choice.rule == "size" else choice.trials[source.baseline].scheme),
        method=_method_of(choice),
        baseline=choice.baseline,
        reference_perplexity=perplexity_interval(source.measured[source.baseline].reference_nll),
        reference_perplexity_held_out=perplexity_interval(reference),
        variants=rows,
        optima=optima(source, run.opened.map, by_output) if by_output else (),
        recommended=advice.recommended,
        reason=advice.reason,
        confirmation=confirm(held_out[advice.recommended], held_out[advice.against], choice.rule),
        notes=tuple(dict.fromkeys(f"{row.label}: {f.text}" for row in rows for f in row.findings)),
        seconds=time.perf_counter() - started,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _method_of(choice: Choice) -> str:
    """The rounding that most trials share; one for each where the method is the choice."""
    if choice.name == "method":
        return "several methods"
    names = Counter(t.rounding.name for t in choice.trials if not isinstance(t.rounding, Pick))
    return names.most_common(1)[0][0]


def _write_rest(run: _Run, records: RunDir, clock: StageClock) -> None:
    options = run.options
    records.write_many(SITES, [site.info() for site in run.opened.map.sites])
    settings: dict[str, str | int | float | bool | None] = {
        "choice": ", ".join(options.choice),
        "scheme": options.scheme,
        "method": options.method,
    }
    records.write(
        LOCK,
        run.opened.lock(
            command="sweep",
            data=[
                run.calibration.identity("calibration"),
                run.selection.identity("selection"),
                run.evaluation.identity("evaluation"),
            ],
            seed=options.seed,
            settings=settings,
        ),
    )
    records.write(
        SUMMARY,
        RunSummary(
            title=f"{run.opened.label}: one choice at a time",
            model=options.model,
            stages=tuple(clock.stages),
        ),
    )
