"""A unit's attribution as a line of words: what it costs, against what, and the judgement."""

from collections.abc import Iterable
from dataclasses import dataclass

from quantriage.records.diagnosis import UnitAttribution
from quantriage.report.wording import number, signed

_UNKNOWN = "–"


@dataclass(frozen=True)
class UnitRow:
    """One unit; figures that were not measured are a dash, `reason` may be empty."""

    unit: str
    stored: str
    swapped: str
    predicted: str
    restore: str
    optimal: str
    error: str
    nearest: str
    noise: str
    judgement: str
    css: str
    reason: str


def kl_of(unit: UnitAttribution) -> float | None:
    """What the unit costs: measured by a swap where that was done, else predicted."""
    return unit.swap_kl if unit.swap_kl is not None else unit.predicted_kl


def rank(units: Iterable[UnitAttribution]) -> list[UnitAttribution]:
    """The costliest first; among those of no known cost, the largest error first."""
    return sorted(units, key=lambda u: (-(kl_of(u) or 0.0), -u.relative_error))


def row_of(unit: UnitAttribution) -> UnitRow:
    """The unit in words."""
    return UnitRow(
        unit=unit.unit,
        stored=f"{unit.layout}, {number(unit.bits)} bits",
        swapped=_known(unit.swap_kl),
        predicted=_known(unit.predicted_kl),
        restore=_UNKNOWN if unit.restore_gain is None else signed(unit.restore_gain),
        optimal=_known(unit.optimal_kl),
        error=number(unit.relative_error),
        nearest=_known(unit.nearest_error),
        noise=_known(unit.noise_ratio),
        judgement=unit.judgement,
        css=unit.judgement.replace(" ", "-"),
        reason=unit.reason,
    )


def _known(value: float | None) -> str:
    return _UNKNOWN if value is None else number(value)
