"""The search for minimal bad sets, on criteria whose answer is known."""

import random
from collections.abc import Callable, Sequence
from itertools import combinations
from math import ceil, inf, log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantriage.diagnose.bisect import Found, Taken, bisect, ddmin, minimal_set

SITES = 210
UNITS = tuple(f"u{i}" for i in range(SITES))


class Rule:
    """Bad where `rule` says so; counts the questions."""

    def __init__(self, rule: Callable[[Taken], bool | None]) -> None:
        self.rule = rule
        self.asked: list[Taken] = []

    def begin(self, units: Taken, value: float) -> bool:
        return value == 1.0

    def measure(self, taken: Taken) -> float:
        self.asked.append(taken)
        verdict = self.rule(taken)
        return 0.5 if verdict is None else float(verdict)

    def bad(self, taken: Taken, value: float) -> bool | None:
        return None if value == 0.5 else value == 1.0


def spread(count: int, seed: int) -> tuple[str, ...]:
    return tuple(random.Random(seed).sample(UNITS, count))


def any_of(culprits: Sequence[str]) -> Rule:
    return Rule(lambda taken: not taken.isdisjoint(culprits))


def all_of(culprits: Sequence[str]) -> Rule:
    return Rule(lambda taken: taken.issuperset(culprits))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", [any_of, all_of])
def test_culprits_among_210_take_few_questions(kind: Callable[..., Rule], count: int) -> None:
    for seed in range(40):
        culprits = spread(count, seed)
        rule = kind(culprits)
        found = bisect(UNITS, rule)
        assert sorted(found.culprits) == sorted(culprits)
        assert found.complete
        assert len(found.groups) == (1 if kind is all_of else count)
        assert len(rule.asked) == len(set(rule.asked)) == len(found.steps)  # nothing is asked twice
        # For each: its binary search, the set itself, the set without it or the rest without the set.
        assert len(rule.asked) <= count * (ceil(log2(SITES)) + 2) + 2


@pytest.mark.parametrize("count", [1, 2, 3])
def test_predictions_that_rank_the_culprits_first_save_most_questions(count: int) -> None:
    for seed in range(40):
        draw = random.Random(seed)
        culprits = spread(count, seed)
        weights = {unit: 0.01 * draw.random() for unit in UNITS}
        weights |= {unit: 0.5 + draw.random() for unit in culprits}
        rule = any_of(culprits)
        found = bisect(UNITS, rule, weights)
        assert sorted(found.culprits) == sorted(culprits)
        assert len(rule.asked) <= 6 * count


def test_wrong_predictions_cost_little() -> None:
    for seed in range(40):
        culprits = spread(2, seed)
        weights = {unit: 0.0 if unit in culprits else random.Random(unit).random() ** 4 for unit in UNITS}
        rule = any_of(culprits)
        assert sorted(bisect(UNITS, rule, weights).culprits) == sorted(culprits)
        assert len(rule.asked) <= 2 * (ceil(log2(2 * SITES)) + 3) + 2


def test_a_pair_that_is_bad_only_together_beside_one_that_is_bad_alone() -> None:
    pair, alone = set(spread(2, 3)), spread(3, 3)[2]
    rule = Rule(lambda taken: alone in taken or pair <= taken)
    found = bisect(UNITS, rule)
    assert {frozenset(group) for group in found.groups} == {frozenset(pair), frozenset({alone})}
    assert found.complete


def one_minimal(found: Sequence[str], rule: Callable[[Taken], bool | None]) -> bool:
    whole = frozenset(found)
    return bool(rule(whole)) and not any(rule(whole - {unit}) for unit in whole)


@st.composite
def monotone(draw: st.DrawFn) -> tuple[list[str], list[Taken]]:
    """Units, and sets of which any makes bad."""
    units = [f"u{i}" for i in range(draw(st.integers(1, 12)))]
    subsets = st.lists(st.sampled_from(units), min_size=1, max_size=4).map(frozenset)
    return units, draw(st.lists(subsets, min_size=1, max_size=4))


@given(monotone())
def test_a_monotone_criterion_is_explained_wholly(case: tuple[list[str], list[Taken]]) -> None:
    units, sets = case
    found = bisect(units, Rule(lambda taken: any(s <= taken for s in sets)))
    assert all(one_minimal(group, lambda taken: any(s <= taken for s in sets)) for group in found.groups)
    assert all(frozenset(group) in sets for group in found.groups)
    assert found.complete
    assert all(not s.isdisjoint(found.culprits) for s in sets)  # without the culprits nothing is bad


@given(st.integers(1, 6), st.randoms(use_true_random=False), st.floats(0.1, 0.9))
@settings(max_examples=300, deadline=None)
def test_any_criterion_ends_in_a_one_minimal_set(count: int, draw: random.Random, share: float) -> None:
    units = [f"u{i}" for i in range(count)]
    table: dict[Taken, bool | None] = {frozenset(units): True, frozenset(): False}
    for size in range(1, count):
        for subset in combinations(units, size):
            table[frozenset(subset)] = draw.choice([None, draw.random() < share])
    ask = table.__getitem__
    assert one_minimal(minimal_set(units, ask), ask)
    assert one_minimal(ddmin(units, ask), ask)


def test_ddmin_finds_the_pair_of_the_textbook() -> None:
    """Zeller and Hildebrandt's figure: of 1 .. 8, the pair 7 and 8 with 1 fails only together."""
    units = [str(i) for i in range(1, 9)]
    assert ddmin(units, {"1", "7", "8"}.issubset) == ("1", "7", "8")


def test_a_split_without_an_answer_is_moved() -> None:
    culprit = spread(1, 5)[0]
    skipped = frozenset(UNITS[: SITES // 2])
    rule = Rule(lambda taken: None if taken == skipped else culprit in taken)
    assert bisect(UNITS, rule).culprits == (culprit,)
    assert len(rule.asked) <= ceil(log2(SITES)) + 4


def test_what_is_not_bad_has_no_culprits() -> None:
    found = bisect(UNITS, Rule(lambda taken: False))
    assert found == Found((), found.steps, 0.0, None, None, True)
    assert len(found.steps) == 1


def test_the_search_ends_where_everything_is_bad() -> None:
    rule = Rule(bool)
    found = bisect(UNITS, rule)
    assert not found.complete
    assert len(rule.asked) <= SITES + 10


class Sum:
    """A sum of parts above a threshold that is set anew for what remains: how KL is judged by default."""

    def __init__(self, parts: dict[str, float]) -> None:
        self.parts, self.threshold, self.asked = parts, inf, 0

    def begin(self, units: Taken, value: float) -> bool:
        self.threshold = value / 2
        return value > 0.3

    def measure(self, taken: Taken) -> float:
        self.asked += 1
        return sum(self.parts[unit] for unit in taken)

    def bad(self, taken: Taken, value: float) -> bool | None:
        return value > self.threshold


def test_a_threshold_may_move_with_what_remains() -> None:
    culprits = dict(zip(spread(3, 11), (4.0, 1.0, 0.4), strict=True))
    found = bisect(UNITS, Sum(dict.fromkeys(UNITS, 0.0) | culprits))
    assert [set(group) for group in found.groups] == [{name} for name in culprits]
