"""Accuracies and flips by hand, intervals and tests against closed forms, and what is concluded."""

import itertools
import math

import numpy as np
import pytest

from quantriage.data.task_items import TaskItem, TaskSet
from quantriage.evaluate.task_summary import chosen, conclusion, measure, task_result, task_run
from quantriage.records.tasks import TaskItemScores


def item(
    gold: int, reference: tuple[float, ...], candidate: tuple[float, ...], *lengths: int
) -> TaskItemScores:
    return TaskItemScores(row=1, gold=gold, lengths=lengths or None, reference=reference, candidate=candidate)


RIGHT, WRONG = (-1.0, -2.0), (-2.0, -1.0)


def flips(lost: int, won: int, same: int) -> list[TaskItemScores]:
    """Items of which the first choice is right; `same` are right before and after."""
    return [
        *[item(0, RIGHT, WRONG, 1, 1)] * lost,
        *[item(0, WRONG, RIGHT, 1, 1)] * won,
        *[item(0, RIGHT, RIGHT, 1, 1)] * same,
    ]


def test_accuracies_flips_and_changes_counted_by_hand() -> None:
    third = item(2, (-1.0, -2.0, -3.0), (-2.0, -1.0, -3.0), 1, 1, 1)  # wrong before and after, elsewhere
    found = measure([*flips(lost=3, won=1, same=5), third], "acc")
    assert (found.items, found.lost, found.won, found.changed) == (10, 3, 1, 5)
    assert found.reference.value == pytest.approx(0.8)
    assert found.candidate.value == pytest.approx(0.6)
    assert found.difference.value == pytest.approx(-0.2)


def test_acc_norm_divides_by_characters_as_the_harness_does() -> None:
    """By bytes the second would win: 9 / 4 characters, 9 / 8 bytes against 8 / 4."""
    task = TaskSet(
        "t", "choices", "t.jsonl", "d", 1, (TaskItem(1, (("q", " abcd"), ("q", " éééé")), (4, 4), 0),)
    )
    found = task_result(task, [(-8.0, -9.0)], [(-8.0, -9.0)])
    assert [m.metric for m in found.measures] == ["acc", "acc_norm"]
    assert found.measures[1].reference.value == 1.0
    longer = item(1, (-8.0, -9.0), (-8.0, -9.0), 4, 6)
    assert chosen([longer.reference], [longer], "acc").tolist() == [0]
    assert chosen([longer.reference], [longer], "acc_norm").tolist() == [1]


def test_without_lengths_there_is_no_acc_norm() -> None:
    task = TaskSet("w", "winogrande", "w.jsonl", "d", 1, (TaskItem(1, (("a", " c"), ("b", " c")), None, 0),))
    assert [m.metric for m in task_result(task, [RIGHT], [WRONG]).measures] == ["acc"]


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (5, 0), (6, 0), (1, 7), (9, 9), (12, 30)])
def test_mcnemar_is_the_two_sided_binomial_of_the_answers_that_turned(lost: int, won: int) -> None:
    turned = lost + won
    tail = sum(math.comb(turned, k) for k in range(min(lost, won) + 1)) / 2**turned
    assert measure(flips(lost, won, 50), "acc").p_value == pytest.approx(min(1.0, 2 * tail))


def test_a_loss_of_the_resolution_would_be_significant_and_half_of_it_not() -> None:
    for turned in (0, 6, 40, 200):
        found = measure(flips(turned // 2, turned - turned // 2, 1000), "acc")
        net = round(found.resolution * found.items)
        lost, won = (turned + net) // 2, (turned - net) // 2
        lost, won = (net, 0) if won < 0 else (lost, won)
        assert measure(flips(lost + 1, won, 1000), "acc").p_value < 0.06
        half = (turned + net // 2) // 2, max(0, (turned - net // 2) // 2)
        assert measure(flips(*half, 1000), "acc").p_value > 0.05


def test_the_paired_interval_against_every_resample_of_four_items() -> None:
    """Ends of the exact bootstrap distribution; a share of 2000 draws may miss its steps by 1.2 points."""
    items = flips(lost=1, won=1, same=2)
    differences = [-1.0, 1.0, 0.0, 0.0]
    means = np.sort([np.mean(drawn) for drawn in itertools.product(differences, repeat=4)])
    found = measure(items, "acc").difference
    for end, share in ((found.low, 0.025), (found.high, 0.975)):
        lowest, highest = np.quantile(means, [share - 0.012, share + 0.012])
        assert lowest <= end <= highest


def test_wilson_s_interval_of_a_model_that_is_always_right() -> None:
    found = measure(flips(0, 0, 100), "acc").reference
    assert found.high == 1.0
    assert found.low == pytest.approx(100 / (100 + 1.959964**2), abs=1e-6)


def test_what_is_concluded() -> None:
    worse = conclusion(measure(flips(lost=40, won=10, same=450), "acc"))
    assert worse.startswith("The candidate lost 6.0 points of accuracy on 500 items: 40 answers turned wrong")
    assert "gained 6.0 points" in conclusion(measure(flips(lost=10, won=40, same=450), "acc"))
    level = conclusion(measure(flips(lost=13, won=12, same=475), "acc"))
    assert (
        "No difference in accuracy can be seen with 500 items: 13 answers turned wrong and 12 right" in level
    )
    assert level.endswith("a loss below 2.0 points would not show.")


def test_several_tasks_are_pooled_over_their_items() -> None:
    def task(name: str, count: int) -> TaskSet:
        return TaskSet(
            name, "choices", name, "d", count, (TaskItem(1, (("q", " a"), ("q", " b")), (1, 1), 0),) * count
        )

    first = task_result(task("a", 4), [RIGHT] * 4, [WRONG, RIGHT, RIGHT, RIGHT])
    second = task_result(task("b", 2), [WRONG] * 2, [WRONG, RIGHT])
    run = task_run([first, second])
    assert run.pooled is not None
    assert (run.pooled.items, run.pooled.lost, run.pooled.won) == (6, 1, 1)
    assert "6 items" in run.sentence
    assert task_run([first]).pooled is None
