"""`bisect`: the smallest sets of units that make a candidate bad, by KL, perplexity or a user's command."""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from quantriage.diagnose import bisect as search
from quantriage.diagnose.attribution import Prediction
from quantriage.diagnose.bisect import Taken
from quantriage.diagnose.criteria import ExcessKl, KlAbove, PerplexityAbove, healthy_kl, suspicion
from quantriage.diagnose.hybrid_runs import HybridRuns, StateRoom
from quantriage.diagnose.own_rounding import own_scheme, rounded_anew
from quantriage.diagnose.unit_errors import stored_of
from quantriage.records.diagnosis import Bisection, BisectStep
from quantriage.records.run_dir import BISECTION, LOCK, SUMMARY, RunDir
from quantriage.records.types import RunSummary
from quantriage.report.render import render
from quantriage.stream.progress import Progress, silent
from quantriage.workflows.attribute import Ground, prepare
from quantriage.workflows.hybrid_command import Command
from quantriage.workflows.opened import open_model
from quantriage.workflows.options import BisectOptions
from quantriage.workflows.stages import StageClock

COMMAND_LOG = "command.log"
SPILL = "spill"


class Criterion(search.Criterion, Protocol):
    """A criterion that can say what it asks."""

    @property
    def text(self) -> str:
        """In words, with figures."""
        ...


def bisect_by_kl(
    ground: Ground, predictions: Mapping[str, Prediction], runs: HybridRuns, limit: float | None = None
) -> Bisection:
    """By KL in excess of healthy rounding (ExcessKl), or above a limit (KlAbove).

    Plain rounding of the reference in the candidate's own schemes is measured first, and counted.
    """
    predicted = {name: healthy_kl(p, ground.errors[name]) for name, p in predictions.items()}
    level = _level(ground, predicted, runs)
    plain = {name: level * kl for name, kl in predicted.items()}
    healthy = {name: min(plain[name], level * p.actual) for name, p in predictions.items()}
    criterion: Criterion = ExcessKl(runs, healthy, plain)
    if limit is not None:
        criterion = KlAbove(runs, limit, healthy if sum(healthy.values()) < limit else {})
    found = run_bisect(ground, criterion, predictions)
    return msgspec.structs.replace(found, evaluations=found.evaluations + 1) if level != 1.0 else found


def _level(ground: Ground, healthy: Mapping[str, float], runs: HybridRuns) -> float:
    """Measured over predicted KL of plain rounding of all sites that can be rounded here; 1 without any."""
    own = {unit: own_scheme(stored_of(ground.pair, unit)) for unit in ground.live if unit.site is not None}
    schemes = {unit.tensors[0]: scheme for unit, scheme in own.items() if scheme is not None}
    predicted = sum(healthy[unit.name] for unit, scheme in own.items() if scheme is not None)
    if predicted <= 0:
        return 1.0
    flipped = frozenset(u.tensors[0] for u in own if u.site is not None and u.site.transposed)
    measured = runs.score_other(rounded_anew(ground.pair.reference, schemes, flipped)).kl
    return measured / predicted if math.isfinite(measured) else 1.0


def run_bisect(
    ground: Ground, criterion: Criterion, predictions: Mapping[str, Prediction], figures: bool = True
) -> Bisection:
    """Search the units that differ, the suspicious ones first.

    Units with NaN or infinite values are culprits without a question; no hybrid with them can be judged.
    figures: the criterion's values mean something to a reader.
    """
    names = [unit.name for unit in ground.live]
    faulty = tuple(unit.name for unit in ground.units if ground.errors[unit.name].faulty)
    errors = {name: ground.errors[name] for name in names}
    counted = _Counted(criterion, ground.progress, len(names))
    found = search.bisect(names, counted, suspicion(errors, predictions)) if names else None
    shown = _finite if figures else _nothing
    return Bisection(
        criterion=criterion.text,
        culprits=(*faulty, *(found.culprits if found else ())),
        evaluations=len(found.steps) if found else 0,
        one_by_one=len(names),
        value_all=shown(found.value_all) if found and not faulty else None,
        value_culprits=shown(found.value_culprits) if found and not faulty else None,
        value_without=shown(found.value_without if found.culprits else found.value_all) if found else None,
        steps=tuple(_steps(found.steps, names, figures)) if found else (),
    )


class _Counted:
    """Tells the progress callback of every question, of as many as there are units."""

    def __init__(self, inner: search.Criterion, progress: Progress, units: int) -> None:
        self._inner, self._progress, self._asked, self._units = inner, progress, 0, units

    def begin(self, units: Taken, value: float) -> bool:
        return self._inner.begin(units, value)

    def measure(self, taken: Taken) -> float:
        value = self._inner.measure(taken)
        self._asked += 1
        self._progress("bisect", self._asked, self._units)
        return value

    def bad(self, taken: Taken, value: float) -> bool | None:
        return self._inner.bad(taken, value)


def _steps(steps: Sequence[search.Step], names: Sequence[str], figures: bool) -> list[BisectStep]:
    shown = _finite if figures else _nothing
    return [
        BisectStep(
            number=number,
            units=tuple(name for name in names if name in step.taken),
            value=shown(step.value),
            bad=bool(step.bad),
        )
        for number, step in enumerate(steps, start=1)
    ]


def _finite(value: float | None) -> float | None:
    """A figure as records hold it: finite, or none."""
    return value if value is not None and abs(value) < float("inf") else None


def _nothing(_: float | None) -> None:
    """An exit code is no figure."""


def bisect(options: BisectOptions, progress: Progress = silent) -> Bisection:
    """Find the culprits; the record, the lock and a report go to `options.run`."""
    clock = StageClock()
    run = RunDir(options.run)
    with clock.stage("open"):
        reference = open_model(options.reference, options.device)
        candidate = open_model(options.candidate, options.device)
        tokens = reference.tokens(options.text, options.sequences, options.length, "evaluation", options.seed)
        room = StateRoom(options.run / SPILL, options.state_bytes)
        ground = prepare(reference, candidate.checkpoint, tokens, room, progress)
    with clock.stage("predict"):
        predictions = ground.predictions(options.seed)
    with clock.stage("bisect"):
        found = _search(options, ground, predictions)
    run.write(BISECTION, found)
    run.write(
        LOCK,
        reference.lock(
            command="bisect",
            data=[tokens.identity("evaluation")],
            seed=options.seed,
            settings={
                "candidate": options.candidate,
                "candidate_digest": candidate.checkpoint.digest(),
                "criterion": found.criterion,
            },
        ),
    )
    run.write(
        SUMMARY,
        RunSummary(
            title=f"Bisect of {candidate.label} against {reference.label}",
            model=options.reference,
            stages=tuple(clock.stages),
        ),
    )
    render(options.run)
    return found


def _search(options: BisectOptions, ground: Ground, predictions: Mapping[str, Prediction]) -> Bisection:
    if options.command is not None:
        units = {unit.name: unit for unit in ground.units}
        folder, log = options.run / "hybrid", options.run / COMMAND_LOG
        options.run.mkdir(parents=True, exist_ok=True)
        command = Command(options.command, ground.opened.model, ground.pair, units, folder, log)
        return run_bisect(ground, command, predictions, figures=False)
    runs = ground.runs()
    try:
        if options.perplexity is not None:
            return run_bisect(ground, PerplexityAbove(runs, options.perplexity), predictions)
        return bisect_by_kl(ground, predictions, runs, options.kl)
    finally:
        runs.close()
