"""Where a candidate's KL comes from: predicted for every site at once, then measured where it matters.

One forward and one backward pass over the reference predict the KL of each site's actual error, of random
errors of its norm, and of plain rounding in its scheme. True swaps (the reference with one unit of the
candidate) and restores (the candidate with one unit of the reference) then follow in the order of the
predictions, as long as a time budget lasts. Swapping everything, the obvious way, takes half a pass for each
of some hundred units and mostly measures what does not matter.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from quantriage.diagnose.change_scores import Change, Shift, score_changes
from quantriage.diagnose.hybrid import Pair, Unit
from quantriage.diagnose.hybrid_runs import HybridRuns
from quantriage.diagnose.noise import RowNoise
from quantriage.diagnose.own_rounding import own_grid, rounded_anew
from quantriage.diagnose.unit_errors import UnitError, site_weight, stored_of
from quantriage.model.site import Site
from quantriage.stream.progress import Progress, silent
from quantriage.stream.stream import Stream

REMAINDER = 0.05  # of the predicted KL that may stay unmeasured
MINOR = 0.005  # a site with less of the predicted KL is no culprit, however many such there are
RESTORED = 0.05  # part of the total from which a unit is also restored
SUSPECT = 2.0  # times the explained error from which a site is measured, however little it may cost
SUSPECTS = 8  # of them at most
COMPARED = 4  # sites whose plain rounding is swapped in as well
DENSE_ERROR = 0.005  # of an unquantized tensor; bfloat16 rounding is 0.002
UNBOUNDED = 1e6  # stands for an infinite KL in records, which hold finite figures only


@dataclass(frozen=True)
class Prediction:
    """Predicted KL of a site's actual error, of random errors of its norm, and of plain rounding."""

    actual: float
    noise: float
    nearest: float | None

    @property
    def noise_ratio(self) -> float | None:
        """Times that the actual error costs what random errors of its norm do; None if these cost nothing."""
        return self.actual / self.noise if self.noise > 0 else None


def predict(
    stream: Stream, pair: Pair, units: Iterable[Unit], errors: Mapping[str, UnitError], seed: int
) -> dict[str, Prediction]:
    """Predictions for every site that differs. Cost: `PREDICTION_PASSES`. Memory: as `score_changes`."""
    sites = {unit.name: unit for unit in units if unit.site is not None and errors[unit.name].differs}

    def changes(site: Site, weight: Tensor) -> dict[str, Change]:
        unit = sites.get(site.name)
        if unit is None:
            return {}
        shift = _shift(pair, unit, weight)
        found: dict[str, Change] = {"actual": shift, "noise": RowNoise.like(shift.weight)}
        stored = stored_of(pair, unit)
        own = own_grid(stored)
        if own is not None and stored is not None and stored.shape == tuple(weight.shape):
            found["nearest"] = Shift(own.nearest(weight).sub_(weight))
        return found

    scores = score_changes(stream, changes, seed, stage="attribution").kl
    return {
        name: Prediction(scores[name, "actual"], scores[name, "noise"], scores.get((name, "nearest")))
        for name in sites
    }


PREDICTION_PASSES = 6.0
"""What `predict` costs in forward passes: forward, recomputing, gradients, and a product for each change."""


def _shift(pair: Pair, unit: Unit, weight: Tensor) -> Shift:
    """The candidate's unit minus the reference's."""
    bias = None
    for name in unit.tensors[1:]:
        bias = pair.read(name, True).float() - pair.read(name, False).float()
    return Shift(site_weight(pair, unit, True) - weight, bias)


@dataclass
class Clock:
    """A budget of seconds; what one whole pass takes is learnt from the passes made."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def allows(self, runs: HybridRuns, began: float, taken: Iterable[str]) -> bool:
        """Whether one more score of `runs`, begun at `began` on this clock, fits."""
        rate = (self.elapsed - began) / max(runs.forwards, 1.0)
        return self.elapsed + rate * runs.cost(set(taken)) <= self.seconds


@dataclass
class Measured:
    """True figures. together: KL of the units that were swapped in as one, as they differ by a cast only."""

    total: float
    swaps: dict[str, float] = field(default_factory=dict)
    restores: dict[str, float] = field(default_factory=dict)
    together: float = 0.0
    truncated: bool = False


def measure(
    runs: HybridRuns,
    errors: Mapping[str, UnitError],
    predictions: Mapping[str, Prediction],
    clock: Clock,
    progress: Progress = silent,
) -> Measured:
    """Swap and restore in the order of what is expected, until the rest does not matter or time is up.

    `runs` holds the units that differ. Unquantized units that differ by a cast only are swapped in together
    first, and one by one only if that matters. Sites whose error is not explained come before all others.
    """
    began = clock.elapsed
    names = list(runs.units)
    found = Measured(bounded(runs.score(names).kl) if names else 0.0)
    casts = [n for n in names if _is_cast(n, predictions, errors)]
    alone = [n for n in names if n not in predictions and n not in casts]
    if casts and len(casts) < len(names) and clock.allows(runs, began, casts):
        found.together = bounded(runs.score(set(casts)).kl)
    if found.together > REMAINDER * found.total:
        alone, found.together = alone + casts, 0.0
    alone.sort(key=lambda n: -max(errors[n].relative, errors[n].beside))
    queue = list(dict.fromkeys([*alone, *_suspects(errors, predictions), *worth_measuring(predictions)]))
    for done, name in enumerate(queue):
        if not clock.allows(runs, began, {name}):
            found.truncated = True
            break
        found.swaps[name] = bounded(runs.score({name}).kl)
        progress("true swaps", done + 1, len(queue))
    known = {n: found.swaps.get(n, predictions[n].actual if n in predictions else 0.0) for n in names}
    culprits = [n for n in names if known[n] > RESTORED * found.total]
    culprits.sort(key=lambda n: -known[n])
    for done, name in enumerate(culprits):
        if not clock.allows(runs, began, set(names) - {name}):
            found.truncated = True
            break
        found.restores[name] = found.total - bounded(runs.score(set(names) - {name}).kl)
        progress("restores", done + 1, len(culprits))
    return found


def compare_plain(
    runs: HybridRuns,
    errors: Mapping[str, UnitError],
    predictions: Mapping[str, Prediction],
    clock: Clock,
    larger: float,
) -> dict[str, tuple[float, float]]:
    """KL of a few sites as they are and rounded plainly, each swapped in alone, while the time allows.

    Asked of sites whose error is `larger` times plain rounding's, those first that seem to lose by it.
    """
    began = clock.elapsed
    loss = {
        name: p.actual / p.nearest
        for name, p in predictions.items()
        if p.nearest and (plain := errors[name].nearest) and errors[name].relative > larger * plain
    }
    found: dict[str, tuple[float, float]] = {}
    for name in sorted(loss, key=lambda n: -loss[n])[:COMPARED]:
        unit = runs.units[name]
        own = own_grid(stored_of(runs.pair, unit))
        if own is None or not clock.allows(runs, began, {name}):
            continue
        flipped = frozenset(unit.tensors[:1] if unit.site is not None and unit.site.transposed else ())
        other = rounded_anew(runs.pair.reference, {unit.tensors[0]: own}, flipped)
        found[name] = (bounded(runs.score({name}).kl), bounded(runs.score_other(other).kl))
    return found


def worth_measuring(predictions: Mapping[str, Prediction]) -> list[str]:
    """Sites in falling order of predicted KL, without the tail that does not matter."""
    ordered = sorted(predictions, key=lambda n: -predictions[n].actual)
    left = total = sum(p.actual for p in predictions.values())
    found: list[str] = []
    for name in ordered:
        if left <= REMAINDER * total or predictions[name].actual < MINOR * total:
            break
        found.append(name)
        left -= predictions[name].actual
    return found


def _suspects(errors: Mapping[str, UnitError], predictions: Mapping[str, Prediction]) -> list[str]:
    found = [n for n in predictions if errors[n].relative > SUSPECT * errors[n].expected > 0]
    return sorted(found, key=lambda n: -predictions[n].actual)[:SUSPECTS]


def additivity(
    measured: Measured, names: Sequence[str], predictions: Mapping[str, Prediction]
) -> float | None:
    """Sum of the units' KL, measured or else predicted, over the total; None if there is no loss."""
    if measured.total <= 0:
        return None
    parts = [measured.swaps.get(n, predictions[n].actual if n in predictions else 0.0) for n in names]
    return (sum(parts) + measured.together) / measured.total


def bounded(kl: float) -> float:
    """A KL as records hold it."""
    return min(kl, UNBOUNDED) if not math.isnan(kl) else UNBOUNDED


def _is_cast(name: str, predictions: Mapping[str, Prediction], errors: Mapping[str, UnitError]) -> bool:
    error = errors[name]
    small = max(error.relative, error.beside) <= DENSE_ERROR
    return name not in predictions and not error.quantized and small
