"""The sensitivity ladder as records: relative error, Fisher, true swap KL, and how well they agree."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy.stats import spearmanr

from quantriage.diagnose.fisher import FisherScores, Key
from quantriage.model.site import ModelMap
from quantriage.numerics.weight_error import WeightError as MeasuredError
from quantriage.records.types import RungCorrelation, Sensitivity, WeightError

_RUNGS = ("relative error", "fisher", "swap KL")


def error_record(error: MeasuredError) -> WeightError:
    """The norms of a rounding as a record."""
    return WeightError(
        frobenius=error.frobenius,
        relative=error.relative,
        maximum=error.maximum,
        mean_absolute=error.mean_absolute,
    )


def sensitivity_records(
    model_map: ModelMap, scores: FisherScores, swaps: Mapping[Key, float] | None = None
) -> list[Sensitivity]:
    """One record for each site and scheme scored."""
    shapes = {part.name: part.shape for part in model_map.parts}
    found = []
    for (name, scheme), error in scores.errors.items():
        rows, columns = shapes[name]
        found.append(
            Sensitivity(
                site=name,
                scheme=str(scheme),
                bits=scheme.stored_bits(shapes[name]) / (rows * columns),
                error=error_record(error),
                fisher=scores.kl.get((name, scheme)),
                swap_kl=None if swaps is None else swaps.get((name, scheme)),
            )
        )
    return found


def rung_correlations(records: Sequence[Sensitivity]) -> list[RungCorrelation]:
    """Spearman between every two rungs, scheme by scheme, over the sites that have both."""
    found = []
    for scheme in sorted({record.scheme for record in records}):
        rows = [record for record in records if record.scheme == scheme]
        values: dict[str, list[float | None]] = {
            "relative error": [r.error.relative for r in rows],
            "fisher": [r.fisher for r in rows],
            "swap KL": [r.swap_kl for r in rows],
        }
        for first, second in combinations(_RUNGS, 2):
            pairs = [
                (a, b)
                for a, b in zip(values[first], values[second], strict=True)
                if a is not None and b is not None
            ]
            if len(pairs) < 3:
                continue
            left, right = np.array(pairs).T
            if np.ptp(left) == 0 or np.ptp(right) == 0:
                continue
            found.append(
                RungCorrelation(
                    scheme=scheme,
                    first=first,
                    second=second,
                    spearman=float(spearmanr(left, right).statistic),
                    sites=len(pairs),
                )
            )
    return found
