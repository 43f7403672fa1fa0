"""Multiple-choice tasks of several checkpoints against one reference, which runs over the items once.

    python -m benchmarks.peers.tasks MODEL CANDIDATE [CANDIDATE ...] --tasks piqa.jsonl --items 500 --out DIR

What `quantriage evaluate --tasks` says of one checkpoint, for a table of them; the reference costs as much as
a candidate, so one call saves half the time. A finished candidate is not run again.
"""

import argparse
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from benchmarks.markdown import table
from quantriage.data.task_items import TaskSet, read_task
from quantriage.evaluate.tasks import Place
from quantriage.records.atomic import write_bytes
from quantriage.records.tasks import TaskMeasure, TaskResult, TaskRun
from quantriage.stream.compute import exact
from quantriage.workflows.opened import open_model
from quantriage.workflows.tasks import read_tasks, task_bench

_STATE_BYTES = 4 << 30


def task_table(found: Mapping[str, TaskRun]) -> str:
    """One line for each candidate and task, and one for all its tasks together."""
    head = ("candidate", "task", "items", "reference", "candidate's", "difference (95%)", "lost / won", "p")
    rows = []
    for name, run in found.items():
        rows += [_cells(name, task.name, task.measures[-1]) for task in run.tasks]
        rows += [_cells(name, "all", run.pooled)] if run.pooled else []
    return table(head, rows) + "\n"


def _cells(name: str, task: str, one: TaskMeasure) -> tuple[str, ...]:
    low, high = 100 * one.difference.low, 100 * one.difference.high
    return (
        name,
        f"{task}, {one.metric}",
        str(one.items),
        f"{one.reference.value:.1%}",
        f"{one.candidate.value:.1%}",
        f"{100 * one.difference.value:+.1f} ({low:+.1f} to {high:+.1f})",
        f"{one.lost} / {one.won}",
        f"{one.p_value:.3g}",
    )


def main() -> None:
    """Score every candidate, and write table and records to --out."""
    parser = argparse.ArgumentParser(description="Multiple-choice tasks of several checkpoints.")
    parser.add_argument("model")
    parser.add_argument("candidates", nargs="+", metavar="CANDIDATE")
    parser.add_argument("--tasks", action="append", required=True, metavar="FILE.jsonl")
    parser.add_argument("--items", type=int, default=500, help="of each file; 0 for all")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the results; a second call adds to it"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    records = {Path(c).name: given.out / f"{Path(c).name}.json" for c in given.candidates}
    if len(records) < len(given.candidates):
        parser.error(f"candidates {', '.join(given.candidates)}: expected different names")
    asked = _identity(read_task(text, given.items) for text in given.tasks)
    decode = msgspec.json.Decoder(TaskRun).decode
    read = {name: decode(path.read_bytes()) for name, path in records.items() if path.is_file()}
    for name, run in read.items():
        if _identity(run.tasks) != asked:
            parser.error(f"{records[name]} has other tasks or items; choose another --out")
    missing = [c for c in given.candidates if Path(c).name not in read]
    if missing:
        with tempfile.TemporaryDirectory(prefix="quantriage-") as scratch:
            reference = open_model(given.model)
            requests = read_tasks(given.tasks, given.items, reference)
            bench = task_bench(requests, reference, Place(exact("cpu"), Path(scratch), _STATE_BYTES, on_line))
            for candidate in missing:
                opened = open_model(candidate)
                found = bench.of(opened.model, opened.map)
                write_bytes(records[Path(candidate).name], msgspec.json.encode(found))
                read[Path(candidate).name] = found
    text = task_table({name: read[name] for name in records})
    (given.out / "tasks.md").write_text(text)
    print(text, end="")


def _identity(tasks: Iterable[TaskSet | TaskResult]) -> set[tuple[str, str, tuple[int, ...]]]:
    """Names, files and items of tasks."""
    return {(task.name, task.digest, tuple(item.row for item in task.items)) for task in tasks}


def on_line(stage: str, done: int, total: int) -> None:
    """Progress, a line for each step."""
    print(f"{stage}: {done}/{total}", flush=True)


if __name__ == "__main__":
    main()
