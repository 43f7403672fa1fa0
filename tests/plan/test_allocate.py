"""Oracle: enumeration of every mix of tiny problems."""

import json
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_units import free_unit, site

from quantriage.errors import BudgetError
from quantriage.plan.allocate import allocate
from quantriage.plan.sizes import bits_per_weight, budget_bytes_for

# scaled to what the solver's absolute gap of 1e-6 resolves
ORACLE = """
import json, sys
import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
pairs, budget = json.load(sys.stdin)
size, cost = np.array(pairs).transpose(2, 0, 1)
one_each = np.kron(np.eye(len(size)), np.ones(size.shape[1]))
rows = [LinearConstraint(one_each, 1, 1), LinearConstraint(size.reshape(1, -1) / 1e6, -np.inf, budget / 1e6)]
scaled = cost.ravel() * 1e4 / cost.min(1).sum()
found = milp(scaled, integrality=np.ones(cost.size), bounds=Bounds(0, 1), constraints=rows,
             options={"mip_rel_gap": 0.0})
print(float(cost.ravel() @ found.x.round()))
"""

OPTION = st.tuples(st.integers(1, 10**7), st.floats(1e-8, 1.0))
PROBLEM = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(PROBLEM, st.floats(0, 1))
def test_first_mix_is_the_optimum_of_all(problem, where):
    units = [free_unit(i, pairs) for i, pairs in enumerate(problem)]
    low = sum(u.frontier[0].bytes for u in units)
    high = sum(u.frontier[-1].bytes for u in units)
    budget = low + int(where * (high - low))
    mixes = allocate(units, budget, top=3)
    every = [c for c in product(*(u.options for u in units)) if sum(o.bytes for o in c) <= budget]
    best = min(sum(o.kl for o in c) for c in every)
    assert mixes[0].kl == pytest.approx(best, rel=1e-9)
    assert len({m.choices for m in mixes}) == len(mixes)
    assert all(m.bytes <= budget and m.bytes == sum(o.bytes for o in m.choices) for m in mixes)
    assert [m.kl for m in mixes] == sorted(m.kl for m in mixes)


def test_fewer_mixes_than_asked_where_the_ladder_agrees():
    units = [free_unit(0, [(1, 0.5), (2, 0.1)]), free_unit(1, [(1, 0.3), (2, 0.2)])]
    mixes = allocate(units, 3, top=8)
    assert [(m.bytes, pytest.approx(m.kl)) for m in mixes] == [(3, 0.4), (2, 0.8)]


def test_a_budget_outside_the_menu_names_both_ends():
    units = [free_unit(0, [(16, 0.5), (32, 0.1), (128, 0.0)])]  # 64 weights
    with pytest.raises(BudgetError, match=r"1\.875 .*below.*2\.000 to 16\.000"):
        allocate(units, 15)
    with pytest.raises(BudgetError, match=r"full precision fits.*2\.000 to 16\.000"):
        allocate(units, 129)
    assert allocate(units, 128)[0].kl == 0


def test_budget_bytes_round_trip_and_refuse_nonsense():
    sites = [site("a", (10, 30)), site("b", (7, 11))]
    size = budget_bytes_for(4.5, sites)
    assert bits_per_weight(size, sites) <= 4.5 < bits_per_weight(size + 1, sites)
    with pytest.raises(BudgetError, match="positive"):
        budget_bytes_for(float("nan"), sites)


def test_hundreds_of_units_are_solved_without_a_word_on_standard_output(capfd):
    """The oracle is HiGHS on the whole problem in a process of its own, since it prints debug lines."""
    generator = np.random.default_rng(0)
    pairs = [
        [(int(bits * size), float(harm * 4.0**-bits * generator.uniform(0.7, 1.3))) for bits in range(2, 9)]
        for size, harm in zip(
            generator.integers(10**4, 10**6, 120), 10 ** generator.uniform(-6, -1.5, 120), strict=True
        )
    ]
    units = [free_unit(0, each) for each in pairs]
    budget = int(sum(each[0][0] for each in pairs) * 1.7)
    mixes = allocate(units, budget, top=8)
    assert len(mixes) == 8
    assert capfd.readouterr() == ("", "")
    done = subprocess.run(
        [sys.executable, "-c", ORACLE], input=json.dumps([pairs, budget]), capture_output=True, text=True
    )
    assert mixes[0].kl == pytest.approx(float(done.stdout.split()[-1]), rel=1e-7)
