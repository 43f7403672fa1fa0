"""When a hybrid counts as bad, for a bisect: by KL above what is healthy, by KL, or by perplexity.

A healthy quantized unit has some KL too, and a hundred of them as much as one culprit. A plain threshold
would therefore be reached by healthy units that happen to be asked about together. The default subtracts what
the units taken are predicted to cost in good health: as they are where they do better than plain rounding, as
plain rounding where they do worse. So only what a unit has in excess counts, and the room that good rounding
of the others leaves below plain rounding hides no culprit.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from quantriage.diagnose.attribution import DENSE_ERROR, SUSPECT, Prediction, bounded
from quantriage.diagnose.bisect import Taken
from quantriage.diagnose.hybrid_runs import HybridRuns
from quantriage.diagnose.unit_errors import UnitError

NOISE = 1e-6
"""KL in nats that no one has to explain; float32 leaves 1e-8."""
HEALTHY = 1.2
"""Times the KL of plain rounding up to which a candidate may be healthy; other tools round a little worse."""
TRUSTED = 2.0
"""Times the KL predicted in good health up to which it is: good roundings' predictions are off by so much."""
REMAINDER = 0.02
"""Part of the candidate's KL below which what remains is left alone: healthy parts are predicted only."""
SLACK = 1.1
"""Times the healthy KL of the units taken that is allowed to them: their parts of it are predicted only."""


@dataclass
class ExcessKl:
    """KL above what healthy units would have.

    plain: predicted KL of each unit rounded plainly, healthy: that, or its own where it is less; both brought
    to the level of what plain rounding of all costs. The threshold lies halfway, in log KL, between a healthy
    candidate's KL H and the KL K of this one: what the units taken have in excess must be more than
    sqrt(H K) - H. It is set anew for what remains when culprits were found, so that a small culprit is found
    behind a large one; the search ends where what remains has at most HEALTHY times the KL of plain rounding
    and TRUSTED times that of healthy units, or REMAINDER of the whole.
    """

    runs: HybridRuns
    healthy: Mapping[str, float]
    plain: Mapping[str, float]
    thresholds: list[float] = field(default_factory=list)
    _least: float = 0.0

    @property
    def text(self) -> str:
        """What was asked."""
        values = ", then ".join(f"{value:.3g}" for value in self.thresholds) or "nothing"
        return f"KL in excess of healthy rounding > {values}"

    def begin(self, units: Taken, value: float) -> bool:
        """Set the threshold for a search in `units`; False if their KL is a healthy one."""
        healthy = total(self.healthy, units) + NOISE
        allowed = min(HEALTHY * total(self.plain, units), TRUSTED * healthy) + NOISE
        if not value > max(allowed, self._least):
            return False
        if not self.thresholds:
            self._least = REMAINDER * bounded(value)
        self.thresholds.append(math.sqrt(healthy * bounded(value)) - healthy)
        return True

    def measure(self, taken: Taken) -> float:
        """KL of the hybrid."""
        return self.runs.score(taken).kl

    def bad(self, taken: Taken, value: float) -> bool | None:
        """Whether the excess is above the present threshold."""
        threshold = self.thresholds[-1] if self.thresholds else 0.0
        return value - SLACK * total(self.healthy, taken) > threshold


@dataclass(frozen=True)
class KlAbove:
    """A candidate's KL above a limit that the user gave.

    For a part of the units: that KL, if all other units were healthy. Without that, healthy units would be
    named because the limit is only reached with them. `healthy` is empty where they alone reach it.
    """

    runs: HybridRuns
    limit: float
    healthy: Mapping[str, float]

    @property
    def text(self) -> str:
        """What was asked."""
        return f"KL > {self.limit:g}" + (", all other units being healthy" if self.healthy else "")

    def begin(self, units: Taken, value: float) -> bool:
        """Whether there is something to search: the KL of what remains, as it is."""
        return value > self.limit and bool(self.bad(units, value))

    def measure(self, taken: Taken) -> float:
        """KL of the hybrid."""
        return self.runs.score(taken).kl

    def bad(self, taken: Taken, value: float) -> bool | None:
        """Whether it would be above the limit."""
        return value + total(self.healthy, self.healthy.keys() - taken) > self.limit


@dataclass(frozen=True)
class PerplexityAbove:
    """Perplexity of the hybrid above a limit that the user gave, the same for every set of units."""

    runs: HybridRuns
    limit: float

    @property
    def text(self) -> str:
        """What was asked."""
        return f"perplexity > {self.limit:g}"

    def begin(self, units: Taken, value: float) -> bool:
        """Whether there is something to search."""
        return bool(self.bad(units, value))

    def measure(self, taken: Taken) -> float:
        """Perplexity of the hybrid."""
        return self.runs.score(taken).perplexity

    def bad(self, taken: Taken, value: float) -> bool | None:  # noqa: ARG002
        """Whether it is above the limit."""
        return value > self.limit


def total(healthy: Mapping[str, float], units: Iterable[str]) -> float:
    """Healthy KL of some units, summed in one order."""
    return sum(healthy.get(unit, 0.0) for unit in sorted(units))


def healthy_kl(prediction: Prediction, error: UnitError) -> float:
    """Predicted KL of a site if it were rounded plainly in its scheme, or in its dtype.

    Where it cannot be rounded here, that of random errors as large as its way of storing explains.
    """
    if prediction.nearest is not None:
        return prediction.nearest
    explained = min(error.expected, error.relative) / error.relative if error.relative > 0 else 0.0
    return prediction.noise * explained**2


def suspicion(errors: Mapping[str, UnitError], predictions: Mapping[str, Prediction]) -> dict[str, float]:
    """Expected excess of each unit, to search the likeliest first.

    A unit without a prediction whose error is not explained might carry everything.
    """
    excess = {n: max(p.actual - healthy_kl(p, errors[n]), 0.0) for n, p in predictions.items()}
    all_of_it = sum(p.actual for p in predictions.values()) or 1.0
    for name, error in errors.items():
        worst = max(error.relative, error.beside)
        if name not in predictions and worst > max(DENSE_ERROR, SUSPECT * error.expected):
            excess[name] = all_of_it
    return excess
