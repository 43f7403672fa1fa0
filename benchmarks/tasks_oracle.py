"""Our task scores against lm-evaluation-harness: the same items, the same model, item by item.

    python -m benchmarks.tasks_oracle MODEL --tasks piqa.jsonl --tasks hellaswag.jsonl --items 50 \\
        --harness-python ENV/bin/python --out FOLDER

ENV holds lm-eval, transformers, accelerate and torch; MODEL is a folder that transformers loads. A file's
layout names the harness's task (arc: arc_easy, whose prompts arc_challenge shares). Writes oracle.json. Exit
code 1 if a log-likelihood differs by more than 0.001, or any prompt, choice or answer does.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measured import timed
from quantriage.data.task_items import TaskSet
from quantriage.evaluate.task_summary import chosen, task_result
from quantriage.evaluate.tasks import Place, log_likelihoods
from quantriage.stream.compute import exact
from quantriage.workflows.opened import open_model
from quantriage.workflows.tasks import read_tasks

TOLERANCE = 1e-3
HARNESS = {"arc": "arc_easy"}  # where the harness's name is not the layout's
SCRIPT = Path(__file__).with_name("tasks_oracle_harness.py")


def ours(arguments: argparse.Namespace) -> tuple[dict[str, tuple[TaskSet, list[tuple[float, ...]]]], float]:
    """Log-likelihoods of every item by task, and the seconds of scoring."""
    opened = open_model(arguments.model)
    found = {}
    started = time.perf_counter()
    for asked in read_tasks(arguments.tasks, arguments.items, opened):
        place = Place(exact(), arguments.out / "spill", 1 << 32)
        values = log_likelihoods(opened.model, opened.map.sites, asked.requests, place)
        found[asked.task.layout] = (asked.task, list(asked.by_item(values)))
    return found, time.perf_counter() - started


def write_rows(arguments: argparse.Namespace, tasks: dict[str, TaskSet]) -> Path:
    """The sampled rows as files that the harness's tasks of those names read."""
    folder: Path = arguments.out / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.jsonl"):
        path.unlink()
    by_name = {Path(text.rpartition("=")[2]).name: Path(text.rpartition("=")[2]) for text in arguments.tasks}
    for layout, task in tasks.items():
        lines = by_name[task.source].read_bytes().split(b"\n")
        rows = b"\n".join(lines[item.row - 1] for item in task.items)
        (folder / f"{HARNESS.get(layout, layout)}.jsonl").write_bytes(rows + b"\n")
    return folder


def difference(task: TaskSet, rows: list[tuple[float, ...]], theirs: dict[str, Any]) -> dict[str, Any]:
    """What differs on one task."""
    items = task_result(task, rows, rows).items
    asked = [[list(pair) for pair in item.pairs] for item in task.items]
    gaps = [
        abs(a - b)
        for one, two in zip(rows, theirs["log_likelihoods"], strict=True)
        for a, b in zip(one, two, strict=True)
    ]
    found: dict[str, Any] = {
        "items": len(items),
        "requests": len(gaps),
        "largest_difference": max(gaps),
        "same_texts": asked == theirs["asked"],
    }
    for metric in ("acc", "acc_norm"):
        if theirs[metric][0] is None:
            continue
        right = chosen(rows, items, metric) == [item.gold for item in items]
        found[metric] = float(right.mean())
        found[f"{metric}_items_that_differ"] = sum(
            bool(a) != bool(b) for a, b in zip(right, theirs[metric], strict=True)
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--tasks", action="append", required=True)
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--harness-python", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found, seconds = ours(arguments)
    rows = write_rows(arguments, {layout: task for layout, (task, _) in found.items()})
    os.environ |= {
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(arguments.out.resolve() / "hub"),
    }
    answers = arguments.out / "harness.json"
    command = [str(arguments.harness_python), str(SCRIPT), arguments.model, str(rows), str(answers)]
    timed(command, arguments.out / "harness.log")
    theirs = json.loads(answers.read_text())
    table = {
        layout: difference(task, values, theirs["tasks"][HARNESS.get(layout, layout)])
        for layout, (task, values) in found.items()
    }
    result = {
        "harness": theirs["version"],
        "model": Path(arguments.model).name,
        "seconds": seconds,
        "harness_seconds": theirs["seconds"],
        "tasks": table,
    }
    (arguments.out / "oracle.json").write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    same = all(
        one["largest_difference"] <= TOLERANCE
        and one["same_texts"]
        and not any(one.get(f"{metric}_items_that_differ") for metric in ("acc", "acc_norm"))
        for one in table.values()
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
