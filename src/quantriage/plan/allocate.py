"""Which unit gets how many bits: the multiple-choice knapsack on predicted KL, solved exactly.

Besides the optimum, mixes that hedge against misprediction are returned: the optimum when large predictions
are over- or understated (KL to a power) and at slightly smaller budgets. No-good cuts were rejected: the
second best mix differs in one unimportant layer and teaches nothing when measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from quantriage.errors import BudgetError
from quantriage.plan.knapsack import Knapsack, solve
from quantriage.plan.sizes import bits_per_weight
from quantriage.plan.units import Option, Unit

# (share of the budget, power of the predicted KL), the plain optimum first, then by distance from it
_LADDER = (
    (1.0, 1.0),
    (1.0, 0.8),
    (1.0, 1.2),
    (1.0, 0.6),
    (1.0, 1.5),
    (0.995, 1.0),
    (0.995, 0.8),
    (0.995, 1.2),
    (0.99, 1.0),
    (1.0, 0.4),
    *product((0.98, 0.96, 0.93), (1.0, 0.8, 1.2)),
)


@dataclass(frozen=True)
class Mix:
    """One choice for every unit, parallel to the units, with its total bytes and predicted KL."""

    choices: tuple[Option, ...]
    bytes: int
    kl: float


def mix_of(choices: Sequence[Option]) -> Mix:
    """The mix of these choices."""
    return Mix(tuple(choices), sum(o.bytes for o in choices), sum(o.kl for o in choices))


def allocate(units: Sequence[Unit], budget_bytes: int, top: int = 8) -> tuple[Mix, ...]:
    """Up to `top` distinct mixes of at most `budget_bytes`, best predicted first; the first is optimal.

    Fewer than `top` where the steps of the ladder agree, as they do for few units or a budget near either
    end. Optimal to 1e-9 of its KL. Raises BudgetError if the budget is below the smallest mix or above full
    precision, with both ends in bits per weight.
    """
    _check_budget(units, budget_bytes)
    found: dict[tuple[Option, ...], Mix] = {}
    for share, power in _LADDER:
        if len(found) >= top:
            break
        mix = _optimum(units, int(budget_bytes * share), power)
        if mix is not None:
            found.setdefault(mix.choices, mix)
    return tuple(sorted(found.values(), key=lambda mix: (mix.kl, mix.bytes)))


def _check_budget(units: Sequence[Unit], budget_bytes: int) -> None:
    sites = [site for unit in units for site in unit.sites]
    smallest = sum(unit.frontier[0].bytes for unit in units)
    largest = sum(unit.frontier[-1].bytes for unit in units)
    asked, low, high = (bits_per_weight(size, sites) for size in (budget_bytes, smallest, largest))
    ends = f"the menu of this model reaches from {low:.3f} to {high:.3f} bits per weight"
    if budget_bytes < smallest:
        raise BudgetError(f"a budget of {asked:.3f} bits per weight is below the smallest mix; {ends}")
    if budget_bytes > largest:
        raise BudgetError(
            f"a budget of {asked:.3f} bits per weight is above the largest mix: full precision fits; {ends}"
        )


def _optimum(units: Sequence[Unit], budget_bytes: int, power: float) -> Mix | None:
    """The mix of least sum of KL to `power`; None if no mix is that small."""
    options = [option for unit in units for option in unit.frontier]
    problem = Knapsack(
        unit=np.repeat(np.arange(len(units)), [len(unit.frontier) for unit in units]),
        weight=np.array([option.bytes for option in options], dtype=np.int64),
        cost=np.array([option.kl**power for option in options], dtype=np.float64),
        capacity=budget_bytes,
    )
    columns = solve(problem)
    return None if columns is None else mix_of([options[column] for column in columns])
