"""The multiple-choice knapsack, solved exactly: one option for each unit, least cost within a weight.

The Lagrangian relaxation (a price on weight) bounds every solution from below. An option whose reduced cost
exceeds the distance between that bound and a known solution is in no better one, and neither is a set of
options whose reduced costs sum to more. So the units are joined one by one, and of all partial choices only
those are kept that may still end within that distance and that no other beats in both weight and cost: a few
thousand at once for thousands of units. An integer program for the same core was rejected: HiGHS proves to
absolute tolerances, took several times as long and printed debug lines to standard output. A table over
bytes was rejected too (a gigabyte of budget is its width), and the greedy walk down the price is not exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_FIRST_SHARE = 2.0**-8  # of the reach searched first: the optimum is usually far closer to the bound


@dataclass(frozen=True)
class Knapsack:
    """Columns of all units in a row: `unit[v]` is the unit of column v, ascending, no unit without one.

    Weights are integers; a solution's weights sum to at most `capacity`.
    """

    unit: Integers  # [columns]
    weight: Integers  # [columns]
    cost: Floats  # [columns], finite
    capacity: int

    @property
    def starts(self) -> Integers:
        """First column of each unit."""
        return np.flatnonzero(np.diff(self.unit, prepend=-1)).astype(np.int64)


@dataclass(frozen=True)
class Relaxation:
    """The Lagrangian bound at the price where the cheapest choices just fit."""

    price: float  # cost for each unit of weight
    bound: float  # no solution costs less
    reduced: Floats  # [columns] >= 0: what taking a column adds to the bound
    solution: Integers  # [units], columns that fit the capacity
    reach: float  # cost of the solution above the bound


def solve(problem: Knapsack) -> Integers | None:
    """Columns [units] of a solution of least cost, or None if nothing fits the capacity.

    Exact up to the rounding of float64. Memory: the partial choices kept, summed over the units.
    """
    if int(np.minimum.reduceat(problem.weight, problem.starts).sum()) > problem.capacity:
        return None
    relaxed = relax(problem)
    if relaxed.reach <= 1e-15 * abs(relaxed.bound):
        return relaxed.solution
    share = _FIRST_SHARE
    while share < 1.0:
        found = _search(problem, relaxed, relaxed.reach * share)
        if found is not None:
            return found
        share *= 4
    found = _search(problem, relaxed, relaxed.reach * (1 + 1e-9))
    return relaxed.solution if found is None else found


def relax(problem: Knapsack) -> Relaxation:
    """Bisect for the least price at which the cheapest choices fit; the bound is the best one there."""
    columns = _cheapest(problem, 0.0)
    price = 0.0
    if problem.weight[columns].sum() > problem.capacity:
        # a difference of one unit of weight at this price outweighs any difference in cost
        low, price = 0.0, float(np.ptp(problem.cost)) * 2
        columns = _cheapest(problem, price)
        for _ in range(200):
            middle = (low + price) / 2
            if not low < middle < price:
                break
            tried = _cheapest(problem, middle)
            if problem.weight[tried].sum() > problem.capacity:
                low = middle
            else:
                price, columns = middle, tried
    priced = problem.cost + price * problem.weight
    least = np.minimum.reduceat(priced, problem.starts)
    bound = math.fsum(least) - price * problem.capacity
    solution = _fill(problem, columns)
    reach = max(0.0, math.fsum(problem.cost[solution]) - bound)
    return Relaxation(price, bound, priced - least[problem.unit], solution, reach)


def _cheapest(problem: Knapsack, price: float) -> Integers:
    """The lightest of the cheapest columns of each unit, weight counted at `price`."""
    priced = problem.cost + price * problem.weight
    least = np.minimum.reduceat(priced, problem.starts)
    weight = np.where(priced == least[problem.unit], problem.weight, np.iinfo(np.int64).max)
    lightest = np.minimum.reduceat(weight, problem.starts)
    found = np.flatnonzero(weight == lightest[problem.unit])
    return found[np.unique(problem.unit[found], return_index=True)[1]].astype(np.int64)


def _fill(problem: Knapsack, columns: Integers) -> Integers:
    """Spend what capacity is left on the largest gains that fit, one after another."""
    columns = columns.copy()
    for _ in range(len(columns)):
        spare = problem.capacity - int(problem.weight[columns].sum())
        gain = problem.cost[columns][problem.unit] - problem.cost
        gain[problem.weight - problem.weight[columns][problem.unit] > spare] = 0.0
        best = int(gain.argmax())
        if gain[best] <= 0.0:
            break
        columns[problem.unit[best]] = best
    return columns


@dataclass(frozen=True)
class _Partial:
    """Choices for the units joined so far, none better than another in both weight and cost."""

    weight: Integers  # [states], above that of the cheapest columns
    cost: Floats  # [states], above that of the cheapest columns
    reduced: Floats  # [states]
    parent: Integers  # [states], state of the step before
    column: Integers  # [states], column of the unit joined last


def _search(problem: Knapsack, relaxed: Relaxation, reach: float) -> Integers | None:
    """The best of all solutions that cost at most `reach` above the bound, None if there is none."""
    base = _cheapest(problem, relaxed.price)
    extra = problem.weight - problem.weight[base][problem.unit]
    above = problem.cost - problem.cost[base][problem.unit]
    core = np.flatnonzero(relaxed.reduced <= reach).astype(np.int64)
    groups = [g for g in np.split(core, np.flatnonzero(np.diff(problem.unit[core])) + 1) if len(g) > 1]
    # dearest second choices first: little of the reach is then left for the many near ones
    groups.sort(key=lambda g: float(np.partition(relaxed.reduced[g], 1)[1]), reverse=True)
    left = problem.capacity - int(problem.weight[base].sum())
    lightest = sum(int(extra[g].min()) for g in groups)  # of the units not yet joined
    heaviest = sum(int(extra[g].max()) for g in groups)
    none = np.zeros(1, dtype=np.int64)
    steps = [_Partial(none, np.zeros(1), np.zeros(1), none, none)]
    for group in groups:
        lightest -= int(extra[group].min())
        heaviest -= int(extra[group].max())
        joined = _join(steps[-1], group, extra[group], above[group], relaxed.reduced[group])
        unused = np.maximum(left - heaviest - joined.weight, 0)
        near = joined.reduced + relaxed.price * unused <= reach
        steps.append(_undominated(joined, near & (joined.weight + lightest <= left)))
        if len(steps[-1].weight) == 0:
            return None
    return _trace(problem, base, steps)


def _join(last: _Partial, group: Integers, extra: Integers, cost: Floats, reduced: Floats) -> _Partial:
    """Every partial choice with every column of one more unit."""
    return _Partial(
        weight=np.add.outer(last.weight, extra).ravel(),
        cost=np.add.outer(last.cost, cost).ravel(),
        reduced=np.add.outer(last.reduced, reduced).ravel(),
        parent=np.repeat(np.arange(len(last.weight)), len(group)),
        column=np.tile(group, len(last.weight)),
    )


def _undominated(joined: _Partial, kept: NDArray[np.bool_]) -> _Partial:
    """Of the `kept`, those that cost less than every lighter one."""
    states = np.flatnonzero(kept)
    states = states[np.lexsort((joined.cost[states], joined.weight[states]))]
    cost = joined.cost[states]
    states = states[np.append(True, cost[1:] < np.minimum.accumulate(cost)[:-1])] if len(states) else states
    return _Partial(
        joined.weight[states],
        joined.cost[states],
        joined.reduced[states],
        joined.parent[states],
        joined.column[states],
    )


def _trace(problem: Knapsack, base: Integers, steps: Sequence[_Partial]) -> Integers:
    """Columns of the cheapest state of the last step; units that were not joined keep `base`."""
    columns = base.copy()
    state = int(steps[-1].cost.argmin())
    for step in reversed(steps[1:]):
        column = step.column[state]
        columns[problem.unit[column]] = column
        state = int(step.parent[state])
    return columns
