"""Errors that cancel: a unit that costs much alone, in a candidate that loses nothing by it.

Tools that train the roundings of a block together (AutoRound) let one layer's error undo another's. Each
then looks badly done by itself, and its replacement by the reference makes the candidate worse. The sum of
the units' costs above the total gives it away; one more pass, with all blamed units restored, decides.
"""

from collections.abc import Sequence

import msgspec

from quantriage.records.diagnosis import UnitAttribution

CANCEL = 1.5
"""Times the total that the units' own costs add up to, from which blame is checked by a restore. Errors of
independent roundings add up to 0.8 to 1.1 times; saturation of two large faults may reach 2."""
GAINED = 0.25
"""Part of its own cost that a restored unit must give back to be blamed for it."""


def cancelling(additivity: float | None) -> bool:
    """Whether costs of single units may not be taken for what the candidate loses by them."""
    return additivity is not None and additivity > CANCEL


def blamed(units: Sequence[UnitAttribution]) -> list[UnitAttribution]:
    """Units that are blamed for their cost alone; damage shows in the weights and needs no cost."""
    return [unit for unit in units if unit.judgement == "badly done"]


def reconsidered(units: Sequence[UnitAttribution], gain: float) -> list[UnitAttribution]:
    """The units, blamed ones called hard if restoring them gives nothing back.

    gain: KL that the candidate loses less with all blamed units restored; a unit's own gain counts before.
    """
    names = {unit.unit for unit in blamed(units)}
    together = sum(_cost(unit) for unit in units if unit.unit in names)
    found = []
    for unit in units:
        own = unit.restore_gain
        kept = own > GAINED * _cost(unit) if own is not None else gain > GAINED * together
        found.append(unit if unit.unit not in names or kept else _hard(unit, gain if own is None else own))
    return found


def _cost(unit: UnitAttribution) -> float:
    return (unit.swap_kl if unit.swap_kl is not None else unit.predicted_kl) or 0.0


def _hard(unit: UnitAttribution, gain: float) -> UnitAttribution:
    who = "it" if unit.restore_gain is not None else "it and others like it"
    change = f"{-gain:.2g} more" if gain < 0 else f"only {gain:.2g} less"
    reason = (
        f"costs {_cost(unit):.2g} alone, but errors of other units undo that: with {who} restored the "
        f"candidate would lose {change}"
    )
    return msgspec.structs.replace(unit, judgement="hard", reason=reason)
