"""Multiple-choice tasks for two models: the same items, in the same tokens, through one after the other."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantriage.data.task_items import read_task
from quantriage.data.windows import check_vocabulary
from quantriage.errors import UsageError
from quantriage.evaluate.task_summary import task_result, task_run
from quantriage.evaluate.tasks import Place, Reader, TaskRequests, log_likelihoods, longest_input
from quantriage.model.causal import CausalModel
from quantriage.model.site import ModelMap
from quantriage.records.digest import combined_digest
from quantriage.records.tasks import TaskRun
from quantriage.records.types import DataIdentity
from quantriage.stream.compute import exact
from quantriage.stream.progress import Progress
from quantriage.stream.stream import SiteWeights
from quantriage.workflows.opened import OpenedModel
from quantriage.workflows.options import EvaluateOptions


@dataclass(frozen=True)
class TaskBench:
    """Tasks in the reference's tokens, and what the reference says of them."""

    requests: tuple[TaskRequests, ...]
    place: Place
    reference: tuple[float, ...]

    def of(self, model: CausalModel, sites: ModelMap, weights: SiteWeights | None = None) -> TaskRun:
        """A candidate on the same items: another model, or the reference with some weights replaced."""
        candidate = _run(self.requests, model, sites, self.place, weights, "tasks: candidate")
        results, start = [], 0
        for one in self.requests:
            stop = start + len(one.requests)
            left, right = (one.by_item(v[start:stop]) for v in (self.reference, candidate))
            results.append(task_result(one.task, left, right))
            start = stop
        return task_run(results)


def read_tasks(given: Sequence[str], items: int, reference: OpenedModel) -> tuple[TaskRequests, ...]:
    """The files of --tasks, sampled and tokenised, before anything slow. Raises DataError or UsageError."""
    sets = [read_task(text, items) for text in given]
    if len({task.name for task in sets}) < len(sets):
        names = ", ".join(task.name for task in sets)
        raise UsageError(f"--tasks {names}: two have one name; write NAME=PATH to tell them apart")
    if not sets:
        return ()
    tokenizer = reference.checkpoint.tokenizer()
    check_vocabulary(tokenizer, reference.model.vocab_size)
    reader = Reader(tokenizer, reference.model.vocab_size, longest_input(reference.model))
    return tuple(map(reader.task, sets))


def task_bench(requests: tuple[TaskRequests, ...], reference: OpenedModel, place: Place) -> TaskBench:
    """Run the reference over the tasks, once for all candidates."""
    found = _run(requests, reference.model, reference.map, place, None, "tasks: reference")
    return TaskBench(requests, place, found)


def on_tasks(
    requests: tuple[TaskRequests, ...],
    reference: OpenedModel,
    candidate: OpenedModel,
    options: EvaluateOptions,
    progress: Progress,
) -> TaskRun:
    """Both models on the tasks, in float32."""
    with tempfile.TemporaryDirectory(prefix="quantriage-") as scratch:
        place = Place(exact(options.device), Path(scratch), options.state_bytes, progress)
        return task_bench(requests, reference, place).of(candidate.model, candidate.map)


def task_identity(asked: TaskRequests) -> DataIdentity:
    """For a lock: the file and the rows asked, a sequence for each choice; the longest one's length."""
    rows = ",".join(str(item.row) for item in asked.task.items)
    return DataIdentity(
        role="evaluation",
        source=f"{asked.task.name} ({asked.task.source})",
        sequences=len(asked.requests),
        length=max(len(request.ids) for request in asked.requests),
        digest=combined_digest([(rows, asked.task.digest)]),
    )


def _run(
    tasks: tuple[TaskRequests, ...],
    model: CausalModel,
    sites: ModelMap,
    place: Place,
    weights: SiteWeights | None,
    stage: str,
) -> tuple[float, ...]:
    every = [request for task in tasks for request in task.requests]
    return tuple(log_likelihoods(model, sites.sites, every, place, weights, stage))
