"""Attribute a candidate's KL to its units within a time budget: predictions, true swaps, best roundings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from quantriage.data.token_set import TokenSet
from quantriage.diagnose import optimum
from quantriage.diagnose.aligned import align
from quantriage.diagnose.attribution import (
    PREDICTION_PASSES,
    Clock,
    Measured,
    Prediction,
    additivity,
    bounded,
    compare_plain,
    measure,
    predict,
    worth_measuring,
)
from quantriage.diagnose.compensation import blamed, cancelling, reconsidered
from quantriage.diagnose.hybrid import Pair, Unit, pair_of, units_of
from quantriage.diagnose.hybrid_runs import HybridRuns, StateRoom
from quantriage.diagnose.judgement import LARGER, Evidence, judge
from quantriage.diagnose.unit_errors import UnitError, unit_errors
from quantriage.formats.checkpoint import Checkpoint
from quantriage.formats.scaled_weights import ScaledWeights
from quantriage.records.diagnosis import Attribution, UnitAttribution
from quantriage.stream.compute import Compute, exact
from quantriage.stream.progress import Progress, silent
from quantriage.stream.states import StateStore
from quantriage.stream.stream import Stream, StreamSettings
from quantriage.workflows.opened import OpenedModel

TRIED = 6  # sites whose best rounding is looked for
_KEPT_PASSES = 8.0  # kept from the best roundings: both models once, and some swaps
_SIBLINGS = 4  # fewer units stored alike say nothing of each other


@dataclass(frozen=True)
class Ground:
    """What attribution and bisect start from: both checkpoints unit by unit, on one token set.

    units: all; live: those that differ and are finite, the only ones that a hybrid is asked about. aligned:
    the pair's candidate, if its weights are rescaled and are seen here in the reference's scaling.
    """

    opened: OpenedModel
    pair: Pair
    tokens: TokenSet
    units: tuple[Unit, ...]
    errors: dict[str, UnitError]
    room: StateRoom
    progress: Progress = silent
    aligned: ScaledWeights | None = None

    @property
    def live(self) -> tuple[Unit, ...]:
        """Units that differ and hold finite values."""
        return tuple(u for u in self.units if self.errors[u.name].differs and not self.errors[u.name].faulty)

    def stream(self, tokens: TokenSet, compute: Compute, name: str) -> Stream:
        """The reference's stream over some tokens, in batches of which there are at least two if possible."""
        batch = StreamSettings.for_length(tokens.length).batch
        settings = StreamSettings(batch=max(1, min(batch, -(-tokens.sequences // 2))))
        store = StateStore(self.room.folder / name, self.room.bytes)
        sites = self.opened.map.sites
        return Stream(self.opened.model, sites, tokens, compute, store, settings, self.progress)

    def runs(self) -> HybridRuns:
        """Hybrids of the live units, in float32."""
        stream = self.stream(self.tokens, exact(str(self.opened.compute.device)), "exact")
        return HybridRuns(stream, self.pair, self.live, self.room)

    def predictions(self, seed: int) -> dict[str, Prediction]:
        """Predicted KL of every live site."""
        return predict(
            self.stream(self.tokens, self.opened.compute, "fisher"), self.pair, self.live, self.errors, seed
        )


def prepare(
    reference: OpenedModel,
    candidate: Checkpoint,
    tokens: TokenSet,
    room: StateRoom,
    progress: Progress = silent,
) -> Ground:
    """Pair the units of two checkpoints and measure their errors; CheckpointError if they do not fit."""
    pair = pair_of(reference.model, candidate.weights)
    units = units_of(reference.model, reference.map, pair)
    aligned = align(reference.model, pair, units)
    if aligned is not None:
        pair = pair_of(reference.model, aligned)
    return Ground(reference, pair, tokens, units, unit_errors(pair, units), room, progress, aligned)


def attribute(
    reference: OpenedModel,
    candidate: Checkpoint,
    tokens: TokenSet,
    budget_seconds: float,
    spill: Path,
    state_bytes: int,
    seed: int = 0,
    progress: Progress = silent,
) -> Attribution:
    """Which units of `candidate` cost how much, and whether they had to.

    KL is of the candidate's weights in the reference's model, over every position of `tokens`. Units with NaN
    or infinite values are judged and otherwise left out. The predictions are always made; swaps, restores and
    best roundings only while `budget_seconds` lasts, but for one pass where blame must be checked. Memory:
    one block and its Hessians, and `state_bytes`.
    """
    clock = Clock(budget_seconds)
    ground = prepare(reference, candidate, tokens, StateRoom(spill, state_bytes), progress)
    predictions = ground.predictions(seed)
    predicted_at = clock.elapsed
    chosen = [n for n in worth_measuring(predictions) if ground.errors[n].quantized][:TRIED]
    # The predictions tell what a pass takes.
    needed = (optimum.PASSES + _KEPT_PASSES) * predicted_at / PREDICTION_PASSES
    affordable = clock.elapsed + needed < budget_seconds
    best = _optima(ground, chosen, seed) if affordable else {}
    runs = ground.runs()
    compared = compare_plain(runs, ground.errors, predictions, clock, LARGER)
    measured = measure(runs, ground.errors, predictions, clock, progress)
    measured.swaps.update({name: both[0] for name, both in compared.items()})
    ratio = additivity(measured, [u.name for u in ground.live], predictions)
    units = _records(ground, predictions, measured, best, compared)
    if cancelling(ratio) and blamed(units):
        left = set(runs.units) - {unit.unit for unit in blamed(units)}
        units = reconsidered(units, measured.total - (bounded(runs.score(left).kl) if left else 0.0))
    runs.close()
    forwards = PREDICTION_PASSES + (optimum.PASSES if best else 0.0) + runs.forwards
    return Attribution(
        total_kl=measured.total,
        additivity=ratio,
        units=tuple(units),
        forwards=forwards,
        forwards_one_by_one=float(len(ground.live) + 2),
        seconds=clock.elapsed,
        budget_seconds=budget_seconds,
        truncated=measured.truncated or not affordable,
    )


def _optima(ground: Ground, names: Sequence[str], seed: int) -> dict[str, float]:
    """Share of the predicted loss that the best rounding leaves, for a few sites."""
    tokens = ground.tokens
    if tokens.sequences < 2 or not names:
        return {}
    fit, score = tokens.split(tokens.sequences // 2)
    compute = ground.opened.compute
    units = [unit for unit in ground.units if unit.name in names]
    found = optimum.optima(
        ground.stream(fit, compute, "fit"), ground.stream(score, compute, "score"), ground.pair, units, seed
    )
    return {name: best.share for name, best in found.items()}


def _records(
    ground: Ground,
    predictions: Mapping[str, Prediction],
    measured: Measured,
    best: Mapping[str, float],
    compared: Mapping[str, tuple[float, float]],
) -> list[UnitAttribution]:
    """One record for each unit, those that cost most first."""
    siblings = sibling_ratios(ground.errors)
    found = []
    for unit in ground.units:
        error, prediction = ground.errors[unit.name], predictions.get(unit.name)
        actual = prediction.actual if prediction else None
        optimal = _optimal(prediction, best.get(unit.name))
        plain = compared[unit.name][1] if unit.name in compared else None
        kl = measured.swaps.get(unit.name, actual)
        word, reason = judge(
            Evidence(
                error, prediction, kl, measured.total, len(ground.live), siblings[unit.name], optimal, plain
            )
        )
        found.append(
            UnitAttribution(
                unit=unit.name,
                block=unit.block,
                category=unit.category,
                layout=error.layout,
                bits=error.bits,
                relative_error=error.relative,
                nearest_error=error.nearest,
                predicted_kl=actual,
                noise_ratio=prediction.noise_ratio if prediction else None,
                swap_kl=measured.swaps.get(unit.name),
                restore_gain=measured.restores.get(unit.name),
                optimal_kl=optimal,
                judgement=word,
                reason=reason,
                plain_kl=plain,
            )
        )
    return sorted(found, key=lambda record: -(record.swap_kl or record.predicted_kl or 0.0))


def _optimal(prediction: Prediction | None, share: float | None) -> float | None:
    """Predicted KL of the best rounding known: the one fitted, the plain one, or the candidate's own."""
    if prediction is None or share is None:
        return None
    plain = prediction.nearest if prediction.nearest is not None else prediction.actual
    return min(share * prediction.actual, plain, prediction.actual)


def sibling_ratios(errors: Mapping[str, UnitError]) -> dict[str, float]:
    """For each unit, the median of error over explained error among those stored alike; 1 if they are few."""
    by_layout: dict[str, list[float]] = {}
    for error in errors.values():
        if error.expected > 0 and not error.faulty:
            by_layout.setdefault(error.layout, []).append(error.relative / error.expected)
    medians = {layout: median(r) for layout, r in by_layout.items() if len(r) >= _SIBLINGS}
    return {name: medians.get(error.layout, 1.0) for name, error in errors.items()}
