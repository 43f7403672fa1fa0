"""Records of multiple-choice tasks: what two models chose on the same items, and what that proves."""

from typing import Literal

from quantriage.records.types import Interval, Proof, Record

TASKS = "tasks.json"  # TaskRun

Metric = Literal["acc", "acc_norm"]


class TaskItemScores(Record, frozen=True):
    """One item: log-likelihoods of its choices under both models, and the divisors of acc_norm."""

    row: int  # line of the file, from 1
    gold: int
    lengths: tuple[int, ...] | None  # characters of each choice; None: acc_norm has no meaning
    reference: tuple[float, ...]
    candidate: tuple[float, ...]


class TaskMeasure(Record, frozen=True):
    """Accuracy of both models by one metric, and their paired difference.

    acc takes the choice of the largest log-likelihood, acc_norm that of the largest per character.
    """

    metric: Metric
    items: int
    reference: Interval  # Wilson
    candidate: Interval
    difference: Interval  # candidate minus reference, paired bootstrap over items
    lost: int  # right to wrong
    won: int  # wrong to right
    changed: int  # another choice than the reference's, right or wrong
    p_value: float  # McNemar, exact: as many won as lost
    resolution: float  # a loss of accuracy smaller than this would not show with these items


class TaskResult(Record, frozen=True):
    """One file."""

    name: str
    layout: str
    source: str
    digest: str  # sha256 of the file
    available: int  # items in the file; those asked are a seeded sample
    measures: tuple[TaskMeasure, ...]
    items: tuple[TaskItemScores, ...]


class TaskRun(Record, frozen=True):
    """All files, and all their items together if there are several."""

    tasks: tuple[TaskResult, ...]
    pooled: TaskMeasure | None
    sentence: str


class Evaluation(Proof, frozen=True, omit_defaults=True):
    """What `evaluate` found: the proof, and the tasks if some were given."""

    tasks: TaskRun | None = None
