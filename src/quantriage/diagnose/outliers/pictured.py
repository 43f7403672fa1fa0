"""Which histograms and error maps are kept: the worst places of each kind, and an ordinary one beside them.

A tail says little by itself; the same curve of the median place shows what is usual in this model.
"""

from collections.abc import Sequence
from typing import Literal, TypeVar

from quantriage.diagnose.outliers.survey import InputLook, Survey
from quantriage.diagnose.outliers.weights import WeightLook
from quantriage.records.outliers import ErrorMap, OutlierHistogram

T = TypeVar("T")
Role = Literal["worst", "ordinary"]
_WORST = 3
_MAPS = 4


def histograms(found: Survey) -> tuple[OutlierHistogram, ...]:
    """Of weights by range ratio, of inputs and states by maximum over mean."""
    weights = sorted(found.weights, key=lambda w: -w.record.range_ratio)
    kept = [_of_weight(look, role) for role, look in _worst_and_middle(weights)]
    for looks in (found.inputs, found.states):
        ranked = sorted(looks, key=lambda i: -i.record.ratio)
        kept += [_of_input(look, role) for role, look in _worst_and_middle(ranked)]
    return tuple(kept)


def error_maps(weights: Sequence[WeightLook]) -> tuple[ErrorMap, ...]:
    """Of the sites with the largest rounding error in the first scheme that has groups."""

    def error(look: WeightLook) -> float:
        return max(s.error for s in look.record.schemes if look.map and s.scheme == look.map.scheme)

    ranked = sorted((w for w in weights if w.map is not None), key=error, reverse=True)
    return tuple(w.map for w in ranked[:_MAPS] if w.map is not None)


def _worst_and_middle(ranked: Sequence[T]) -> list[tuple[Role, T]]:
    chosen: list[tuple[Role, T]] = [("worst", look) for look in ranked[:_WORST]]
    if len(ranked) > 2 * _WORST:
        chosen.append(("ordinary", ranked[len(ranked) // 2]))
    return chosen


def _of_weight(look: WeightLook, role: Role) -> OutlierHistogram:
    record = look.record
    return OutlierHistogram(
        place=record.site,
        kind="weights",
        std=record.std,
        maximum=record.maximum,
        role=role,
        magnitudes=look.magnitudes,
    )


def _of_input(look: InputLook, role: Role) -> OutlierHistogram:
    record = look.record
    return OutlierHistogram(
        place=record.name,
        kind=record.kind,
        std=record.std,
        maximum=record.maximum,
        role=role,
        magnitudes=look.magnitudes,
    )
