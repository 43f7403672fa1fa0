"""Which unit gets how many bits: the multiple-choice knapsack on predicted KL, solved exactly by HiGHS.

Besides the optimum, mixes that hedge against misprediction are returned: the optimum when large predictions
are over- or understated (KL to a power) and at slightly smaller budgets. No-good cuts alone give mixes
that differ in one unimportant layer and teach nothing when measured, so they only fill what is then missing.

Predictions span 1e-8 .. 1 and the solver's tolerances are absolute (gap 1e-6). So costs are scaled by a
feasible solution found greedily: its cost becomes 1e4, and options that alone cost more are dropped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from math import gcd

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, vstack

from quantriage.errors import BudgetError
from quantriage.plan.sizes import bits_per_weight
from quantriage.plan.units import Option, Unit

# (share of the budget, power of the predicted KL), the plain optimum first
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
)
_COST_OF_GREEDY = 1e4
_CUT_ROUNDS = 50


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

    Optimal to 1e-10 of its KL. Raises BudgetError if the budget is below the smallest mix or above full
    precision, with both ends in bits per weight.
    """
    _check_budget(units, budget_bytes)
    found: dict[tuple[Option, ...], Mix] = {}
    for share, power in _LADDER:
        if len(found) >= top:
            break
        mix = _solve(units, int(budget_bytes * share), power, ())
        if mix is not None:
            found.setdefault(mix.choices, mix)
    while len(found) < top:
        mix = _solve(units, budget_bytes, 1.0, tuple(found))
        if mix is None:
            break
        found[mix.choices] = mix
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


@dataclass(frozen=True)
class _Program:
    """Binary program: variable j is `options[j]` of unit `owner[j]`."""

    owner: np.ndarray  # [n]
    options: tuple[Option, ...]
    cost: np.ndarray  # [n], scaled
    extra: np.ndarray  # [n], bytes above the unit's smallest option
    room: int  # bytes above the smallest mix


def _program(units: Sequence[Unit], budget_bytes: int, power: float, cuts: bool) -> _Program | None:
    smallest = sum(unit.frontier[0].bytes for unit in units)
    if budget_bytes < smallest:
        return None
    ceiling = sum(option.kl**power for option in greedy(units, budget_bytes, power))
    owner, options, cost, extra = [], [], [], []
    for index, unit in enumerate(units):
        for option in unit.frontier:
            value = option.kl**power
            if value > ceiling and not cuts:  # a cut may exclude the greedy solution itself
                continue
            owner.append(index)
            options.append(option)
            cost.append(value)
            extra.append(option.bytes - unit.frontier[0].bytes)
    scale = _COST_OF_GREEDY / ceiling if ceiling > 0 else 1.0
    room = budget_bytes - smallest
    return _Program(np.array(owner), tuple(options), np.array(cost) * scale, np.array(extra), room)


def _solve(
    units: Sequence[Unit], budget_bytes: int, power: float, excluded: Sequence[tuple[Option, ...]]
) -> Mix | None:
    """The best mix that is none of `excluded`; None if there is none."""
    program = _program(units, budget_bytes, power, bool(excluded))
    if program is None:
        return None
    cuts = list(excluded)
    for _ in range(_CUT_ROUNDS):
        choices = _run(program, len(units), cuts)
        if choices is None:
            return None
        mix = mix_of(choices)
        if mix.bytes <= budget_bytes:
            return mix
        cuts.append(mix.choices)  # over by the solver's tolerance on integers: exclude exactly this one
    raise BudgetError(
        f"no mix within {budget_bytes} bytes found in {_CUT_ROUNDS} attempts; change the budget"
    )


def _run(program: _Program, units: int, cuts: Sequence[tuple[Option, ...]]) -> list[Option] | None:
    count = len(program.options)
    columns = np.arange(count)
    divisor = reduce(gcd, program.extra.tolist(), 0) or 1
    once = csr_array((np.ones(count), (program.owner, columns)), shape=(units, count))
    size = csr_array((program.extra / divisor)[None, :])
    rows = [once, size]
    low = [*np.ones(units).tolist(), -np.inf]
    high = [*np.ones(units).tolist(), float(program.room // divisor)]
    for choices in cuts:
        chosen = [
            option == choices[unit] for option, unit in zip(program.options, program.owner, strict=True)
        ]
        rows.append(csr_array(np.array(chosen, dtype=float)[None, :]))
        low.append(-np.inf)
        high.append(units - 1.0)
    result = milp(
        program.cost,
        constraints=LinearConstraint(vstack(rows), low, high),
        integrality=np.ones(count, dtype=np.int64),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        return None
    picked = np.flatnonzero(result.x > 0.5)
    assert len(picked) == units, "the solver chose not exactly one option for each unit"
    return [program.options[j] for j in picked]


def greedy(units: Sequence[Unit], budget_bytes: int, power: float = 1.0) -> tuple[Option, ...]:
    """A feasible choice by steepest fall of KL per byte, from the smallest mix; an upper bound only."""
    choices = [unit.frontier[0] for unit in units]
    room = budget_bytes - sum(option.bytes for option in choices)
    for index, option in _hull_steps(units, power):
        step = option.bytes - choices[index].bytes
        if 0 < step <= room:
            choices[index] = option
            room -= step
    return tuple(choices)


def _hull_steps(units: Sequence[Unit], power: float) -> Iterator[tuple[int, Option]]:
    """Upgrades along each unit's lower convex hull, steepest fall of KL per byte first."""
    steps: list[tuple[float, int, Option]] = []
    for index, unit in enumerate(units):
        hull: list[Option] = []
        for option in unit.frontier:
            while len(hull) > 1 and _slope(hull[-1], option, power) <= _slope(hull[-2], hull[-1], power):
                hull.pop()
            hull.append(option)
        steps += [(_slope(a, b, power), index, b) for a, b in pairwise(hull)]
    for _, index, option in sorted(steps, key=lambda step: (step[0], step[1], step[2].bytes)):
        yield index, option


def _slope(first: Option, second: Option, power: float) -> float:
    return float((second.kl**power - first.kl**power) / (second.bytes - first.bytes))
