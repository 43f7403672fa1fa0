"""From log-likelihoods to accuracies, their paired difference, and what a number of items can show.

Accuracy alone hides most of what quantization does: as many answers may turn right as turn wrong. So the
items that changed are counted, and the test is on them (McNemar's, exact), not on two accuracies as if they
were measured on different items.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from quantriage.data.task_items import TaskSet
from quantriage.evaluate.intervals import mean_interval
from quantriage.records.tasks import Metric, TaskItemScores, TaskMeasure, TaskResult, TaskRun
from quantriage.records.types import Interval

LEVEL = 0.05
_FEWEST = 6  # items lost and none won: the fewest with an exact McNemar p below LEVEL
_NORMAL = 1.96

Rows = Sequence[tuple[float, ...]]
Choices = NDArray[np.int64]


def task_result(task: TaskSet, reference: Rows, candidate: Rows) -> TaskResult:
    """Log-likelihoods of every item's choices under both models as one record."""
    items = tuple(
        TaskItemScores(row=item.row, gold=item.gold, lengths=item.lengths, reference=left, candidate=right)
        for item, left, right in zip(task.items, reference, candidate, strict=True)
    )
    metrics: tuple[Metric, ...] = ("acc",) if any(i.lengths is None for i in items) else ("acc", "acc_norm")
    return TaskResult(
        name=task.name,
        layout=task.layout,
        source=task.source,
        digest=task.digest,
        available=task.available,
        measures=tuple(measure(items, metric) for metric in metrics),
        items=items,
    )


def task_run(results: Sequence[TaskResult]) -> TaskRun:
    """All tasks, pooled if there are several, and what to conclude."""
    every = [item for result in results for item in result.items]
    pooled = measure(every, "acc") if len(results) > 1 else None
    main = pooled or results[0].measures[0]
    return TaskRun(tasks=tuple(results), pooled=pooled, sentence=conclusion(main))


def measure(items: Sequence[TaskItemScores], metric: Metric) -> TaskMeasure:
    """Both models on the same items by one metric."""
    gold = np.asarray([item.gold for item in items])
    before = chosen([item.reference for item in items], items, metric)
    after = chosen([item.candidate for item in items], items, metric)
    was_right, is_right = before == gold, after == gold
    lost, won = int((was_right & ~is_right).sum()), int((~was_right & is_right).sum())
    difference = is_right.astype(np.float64) - was_right
    return TaskMeasure(
        metric=metric,
        items=len(items),
        reference=_share(int(was_right.sum()), len(items)),
        candidate=_share(int(is_right.sum()), len(items)),
        difference=mean_interval(difference.tolist()),
        lost=lost,
        won=won,
        changed=int((before != after).sum()),
        p_value=float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0,
        resolution=max(_FEWEST, _NORMAL * math.sqrt(lost + won)) / len(items),
    )


def chosen(rows: Rows, items: Sequence[TaskItemScores], metric: Metric) -> Choices:
    """Index of the choice that a model takes; the first of equals."""
    found = []
    for row, item in zip(rows, items, strict=True):
        per = item.lengths if metric == "acc_norm" and item.lengths is not None else (1,) * len(row)
        found.append(int(np.argmax(np.asarray(row) / np.asarray(per))))
    return np.asarray(found, dtype=np.int64)


def conclusion(found: TaskMeasure) -> str:
    """What the items prove, in a sentence or two."""
    points = 100 * found.difference.value
    flips = f"{found.lost} answers turned wrong and {found.won} right"
    if found.p_value < LEVEL:
        word = "lost" if points < 0 else "gained"
        return (
            f"The candidate {word} {abs(points):.1f} points of accuracy on {found.items} items: {flips} "
            f"(p {found.p_value:.2g})."
        )
    return (
        f"No difference in accuracy can be seen with {found.items} items: {flips} (p {found.p_value:.2g}); "
        f"a loss below {100 * found.resolution:.1f} points would not show."
    )


def _share(right: int, items: int) -> Interval:
    """A share with Wilson's interval: the bootstrap has none for a model that is always right."""
    interval = binomtest(right, items).proportion_ci(method="wilson")
    return Interval(value=right / items, low=float(interval.low), high=float(interval.high))
