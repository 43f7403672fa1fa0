"""Repairs against an exhaustive search, and the rules of what counts as worth its bytes."""

import itertools
import random

import pytest

from quantriage.numerics.schemes import Scheme
from quantriage.plan.repair_plan import AGAIN, KEEP, UNBOUNDED, Culprit, Larger, choose, larger_schemes


def test_rounding_again_costs_nothing_and_is_taken_only_if_better() -> None:
    groups = [[Culprit("a", 1.0, 0.2)], [Culprit("b", 1.0, 1.5)], [Culprit("c", 1.0, None)]]
    assert choose(groups, 0, 3.0) == {"a": AGAIN, "b": KEEP, "c": KEEP}
    assert choose([], 10, 1.0) == {}


def test_a_larger_way_must_earn_its_bytes_and_fit() -> None:
    culprit = Culprit("a", 1.0, 0.5, {"w8": Larger(100, 0.1), "dense": Larger(300, 0.0)})
    assert choose([[culprit]], 99, 1.0) == {"a": AGAIN}
    assert choose([[culprit]], 100, 1.0) == {"a": "w8"}
    assert choose([[culprit]], 300, 1.0) == {"a": "dense"}
    assert choose([[culprit]], 300, 1.0, worth=0.45) == {"a": "dense"}
    assert choose([[culprit]], 300, 100.0) == {"a": AGAIN}


def test_members_of_a_group_go_up_together_or_not_at_all() -> None:
    q = Culprit("q", UNBOUNDED, None, {"w8": Larger(10, 0.1), "g32": Larger(1, 0.4)})
    k = Culprit("k", 0.3, None, {"w8": Larger(10, 0.1)})
    assert choose([[q, k]], 19, 1.0) == {"q": KEEP, "k": KEEP}
    assert choose([[q, k]], 20, 1.0) == {"q": "w8", "k": "w8"}


def test_least_predicted_loss_of_all_choices_that_fit() -> None:
    draw = random.Random(0)
    for _ in range(20):
        groups = [
            [
                Culprit(
                    str(i),
                    2.0,
                    draw.uniform(0.5, 2.5),
                    {c: Larger(draw.randint(1, 9), draw.random()) for c in "xy"},
                )
            ]
            for i in range(4)
        ]
        capacity = draw.randint(0, 25)
        found = choose(groups, capacity, 0.0)
        best = min(
            sum(kl for _, kl in picked)
            for picked in itertools.product(*(_all(group[0]) for group in groups))
            if sum(added for added, _ in picked) <= capacity
        )
        taken = [dict(_named(group[0]))[found[group[0].name]] for group in groups]
        assert sum(added for added, _ in taken) <= capacity
        assert sum(kl for _, kl in taken) == pytest.approx(best)


def _named(culprit: Culprit) -> list[tuple[str, tuple[int, float]]]:
    larger = [(label, (way.bytes_added, way.kl)) for label, way in culprit.larger.items()]
    again = culprit.again if culprit.again is not None else culprit.kept
    return [(KEEP, (0, culprit.kept)), (AGAIN, (0, again)), *larger]


def _all(culprit: Culprit) -> list[tuple[int, float]]:
    return [option for _, option in _named(culprit)]


def test_larger_schemes_keep_the_grouping_or_the_bits() -> None:
    menu = tuple(map(Scheme.parse, ["w4a-g32", "w4a-g64", "w4s-g32", "w4a-channel", "w8s-g64", "w8s-g32"]))
    words = lambda own: [str(s) for s in larger_schemes(Scheme.parse(own), menu)]  # noqa: E731
    assert words("w4a-g64") == ["w4a-g32", "w8s-g64"]
    assert words("w4s-channel") == ["w4s-g32"]
    assert words("w8s-g64") == ["w8s-g32"]
    assert larger_schemes(None, menu) == ()
