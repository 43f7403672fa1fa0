"""Oracle: enumeration of every mix of tiny problems."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_units import free_unit, site

from quantriage.errors import BudgetError
from quantriage.plan.allocate import allocate
from quantriage.plan.sizes import bits_per_weight, budget_bytes_for

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
