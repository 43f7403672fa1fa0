"""Mixes one step from a given one: more bits for one unit, paid for by fewer for one or several others.

Predictions rank mixes well and place single layers roughly, so the best measured mix is refined by measuring
its neighbours. An upgrade is paid by the single downgrades that cost least, and by a greedy set of small
ones; enumerating all sets was rejected, since most differ in layers too small to measure.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from quantriage.plan.allocate import Mix, mix_of
from quantriage.plan.units import Option, Unit

_PAYERS = 4  # single downgrades tried for each upgrade

Change = tuple[tuple[int, Option], ...]


def neighbours(units: Sequence[Unit], mix: Mix, budget_bytes: int, limit: int) -> Iterator[Mix]:
    """Up to `limit` distinct mixes within the budget, largest predicted improvement (least harm) first.

    Every one upgrades exactly one unit. Memory: the single steps from `mix`, and four mixes for each upgrade.
    """
    upgrades, steps = _steps(units, mix)
    downgrades = _downgrades(mix, steps)
    changes: dict[frozenset[tuple[int, Option]], tuple[float, Change]] = {}
    for index, option in upgrades:
        needed = option.bytes - mix.choices[index].bytes - (budget_bytes - mix.bytes)
        for payment in _payments(downgrades, index, needed):
            change = ((index, option), *payment)
            delta = sum(new.kl - mix.choices[unit].kl for unit, new in change)
            changes.setdefault(frozenset(change), (delta, change))
    ranked = sorted(changes.values(), key=lambda entry: entry[0])
    for _, change in islice(ranked, limit):
        choices = list(mix.choices)
        for unit, new in change:
            choices[unit] = new
        yield mix_of(choices)


def _steps(units: Sequence[Unit], mix: Mix) -> tuple[list[tuple[int, Option]], list[tuple[int, Option]]]:
    """Single upgrades (lower KL, more bytes), and single downgrades with the least KL added first."""
    upgrades, downgrades = [], []
    for index, (unit, now) in enumerate(zip(units, mix.choices, strict=True)):
        for option in unit.frontier:
            if option.kl < now.kl and option.bytes > now.bytes:
                upgrades.append((index, option))
            elif option.kl > now.kl and option.bytes < now.bytes:
                downgrades.append((index, option))
    downgrades.sort(key=lambda step: step[1].kl - mix.choices[step[0]].kl)
    return upgrades, downgrades


@dataclass(frozen=True)
class _Downgrades:
    """All single downgrades of a mix, the least KL added first."""

    steps: Sequence[tuple[int, Option]]
    units: NDArray[np.int64]  # [steps]
    freed: NDArray[np.int64]  # [steps], bytes
    by_harm: NDArray[np.int64]  # [steps], order of KL added for each byte freed


def _downgrades(mix: Mix, steps: Sequence[tuple[int, Option]]) -> _Downgrades:
    freed = np.array([mix.choices[unit].bytes - option.bytes for unit, option in steps], dtype=np.int64)
    harm = np.array([option.kl - mix.choices[unit].kl for unit, option in steps], dtype=np.float64)
    order = np.argsort(harm / np.maximum(freed, 1), kind="stable")
    return _Downgrades(steps, np.array([unit for unit, _ in steps], dtype=np.int64), freed, order)


def _payments(downgrades: _Downgrades, upgraded: int, needed: int) -> Iterator[Change]:
    """Sets of downgrades of other units that free at least `needed` bytes; the empty set if none is."""
    if needed <= 0:
        yield ()
        return
    enough = downgrades.freed >= needed
    for j in np.flatnonzero(enough & (downgrades.units != upgraded))[:_PAYERS]:
        yield (downgrades.steps[j],)
    chosen: dict[int, Option] = {}
    for j in downgrades.by_harm[~enough[downgrades.by_harm]]:
        unit, option = downgrades.steps[j]
        if unit == upgraded or unit in chosen or downgrades.freed[j] >= needed:
            continue
        chosen[unit] = option
        needed -= int(downgrades.freed[j])
        if needed <= 0:
            break
    if needed <= 0 and len(chosen) > 1:
        yield tuple(sorted(chosen.items(), key=lambda step: step[0]))
