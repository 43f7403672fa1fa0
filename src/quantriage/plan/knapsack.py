"""The multiple-choice knapsack, solved exactly: one option for each unit, least cost within a weight.

An integer program given to HiGHS, after the reduction that makes it small. The Lagrangian relaxation (a
price on weight) bounds every solution from below; an option whose reduced cost exceeds the distance between
that bound and a known solution is in no better solution, and dropping such leaves a few dozen columns of
many thousands. What remains is stated in reduced costs plus the price of unused weight, so its numbers span
one scale although costs span eight decades. Dynamic programming over bytes was rejected (a gigabyte of
budget is the table's width), and so was the greedy walk down the price, which is not exact.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from quantriage.errors import QuantriageError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_SCALE = 1e3  # the largest reduced cost in the program; HiGHS proves optimality to 1e-6 of its objective


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

    Exact: no column beyond the reach of the relaxation's own solution is in a better one.
    """
    if int(np.minimum.reduceat(problem.weight, problem.starts).sum()) > problem.capacity:
        return None
    relaxed = relax(problem)
    if relaxed.reach <= 1e-15 * abs(relaxed.bound):
        return relaxed.solution
    return _solve_core(problem, relaxed)


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


def _solve_core(problem: Knapsack, relaxed: Relaxation) -> Integers:
    """The best solution among the columns within reach.

    Variables: one for each column, and the capacity left over, whose price is part of the cost. A solution
    that fits only within the solver's tolerance is cut off and the program solved again.
    """
    core = np.flatnonzero(relaxed.reduced <= relaxed.reach * (1 + 1e-9)).astype(np.int64)
    units, columns = len(problem.starts), len(core)
    base = problem.weight[_cheapest(problem, relaxed.price)]
    extra = (problem.weight[core] - base[problem.unit[core]]).astype(np.float64)
    left = float(problem.capacity - int(base.sum()))
    size = max(1.0, float(np.abs(extra).max()) / 1e4)  # keeps the row within the solver's tolerances
    cost = np.append(relaxed.reduced[core], relaxed.price * size) * (_SCALE / relaxed.reach)
    one_each = csr_array((np.ones(columns), (problem.unit[core], np.arange(columns))), (units, columns + 1))
    constraints = [
        LinearConstraint(one_each, 1, 1),
        LinearConstraint(csr_array(np.append(extra / size, 1.0)[None]), left / size, left / size),
    ]
    while True:
        result = milp(
            cost,
            integrality=np.append(np.ones(columns), 0),
            bounds=Bounds(0, np.append(np.ones(columns), np.inf)),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None or result.status != 0:
            raise QuantriageError(f"allocation: the integer program was not solved ({result.message})")
        taken = result.x[:-1] > 0.5
        found = core[taken]
        if int(problem.weight[found].sum()) <= problem.capacity:
            return found
        cut = csr_array(np.append(taken, 0.0)[None])
        constraints.append(LinearConstraint(cut, -np.inf, units - 1))
