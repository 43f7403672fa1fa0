"""`evaluate --tasks` on a tiny model: record, table, report, and what is refused before work begins."""

import json
import random
from pathlib import Path

import msgspec
import pytest
import torch
from tiny_run import Place
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from cli.word_model import WORDS
from quantriage.cli.app import application
from quantriage.errors import DataError, UsageError
from quantriage.records.calibration import MATRIX, CalibrationMatrix
from quantriage.records.run_dir import LOCK, REPORT, RunDir
from quantriage.records.tasks import TASKS, Evaluation, TaskRun
from quantriage.records.types import Lock
from quantriage.workflows.quantize import quantize

SMALL = ("--sequences", 2, "--length", 16, "--quiet")


def write_task(path: Path, count: int, seed: int) -> Path:
    """Questions of random words with three answers of one to three words."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        choices = [" ".join(draw.choices(WORDS, k=draw.randint(1, 3))) for _ in range(3)]
        query = " ".join(draw.choices(WORDS, k=draw.randint(3, 20)))
        rows.append({"query": query, "choices": choices, "gold": draw.randrange(3)})
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def invoke(place: Place, candidate: Path, *arguments: object) -> Result:
    words = ("evaluate", place.model, candidate, "--text", place.held_out, *SMALL, *arguments)
    return CliRunner().invoke(application(), [str(word) for word in words])


@pytest.fixture(scope="module")
def candidate(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain rounding at 3 bits."""
    out = tmp_path_factory.mktemp("candidate") / "out"
    quantize(place.quantize(out, scheme="w3a-g32", method="rtn"))
    return out


def test_both_models_answer_the_same_items_and_the_record_holds_what_they_said(
    place: Place, candidate: Path, tmp_path: Path
) -> None:
    first, second = write_task(tmp_path / "one.jsonl", 30, 1), write_task(tmp_path / "two.jsonl", 12, 2)
    run = tmp_path / "run"
    given = ("--tasks", first, "--tasks", f"other={second}", "--task-items", 20, "--run", run)
    done = invoke(place, candidate, *given, "--json")
    assert done.exit_code == 0, done.output
    found = msgspec.json.decode(done.stdout, type=Evaluation)
    assert found.tasks == RunDir(run).read(TASKS, TaskRun)
    assert found.tasks is not None
    assert [(t.name, len(t.items), t.available) for t in found.tasks.tasks] == [
        ("one", 20, 30),
        ("other", 12, 12),
    ]
    assert found.tasks.pooled is not None
    assert found.tasks.pooled.items == 32
    assert found.tasks.pooled.changed > 0
    sources = [identity.source for identity in RunDir(run).read(LOCK, Lock).data]
    assert sources == ["held-out.txt", "one (one.jsonl)", "other (two.jsonl)"]
    assert "Multiple-choice tasks" in RunDir(run).file(REPORT).read_text()
    asked = found.tasks.tasks[0].items[0]
    row = json.loads(first.read_text().splitlines()[asked.row - 1])
    assert asked.gold == row["gold"]
    assert asked.reference == pytest.approx(said_of(place.model, row), abs=2e-4)
    assert asked.candidate == pytest.approx(said_of(candidate, row), abs=2e-4)


def said_of(folder: Path, row: dict[str, str]) -> list[float]:
    """By plain transformers: the log-likelihood of each choice after the query."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for choice in row["choices"]:
        before = len(tokenizer(row["query"])["input_ids"])
        ids = tokenizer(f"{row['query']} {choice}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            log_probabilities = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
        found.append(sum(float(log_probabilities[i - 1, ids[0, i]]) for i in range(before, ids.shape[1])))
    return found


def test_the_table_and_the_conclusion_are_printed(place: Place, tmp_path: Path) -> None:
    done = invoke(place, place.model, "--tasks", write_task(tmp_path / "mine.jsonl", 10, 3))
    assert done.exit_code == 0, done.output
    assert "mine" in done.stdout
    assert "+0.0 [+0.0, +0.0]" in done.stdout
    assert "No difference in accuracy can be seen with 10 items: 0 answers turned wrong" in done.stdout


def test_a_run_without_tasks_leaves_none_of_an_earlier_candidate(place: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    task = write_task(tmp_path / "mine.jsonl", 10, 3)
    assert invoke(place, place.model, "--run", run, "--tasks", task).exit_code == 0
    assert RunDir(run).has(TASKS)
    done = invoke(place, place.model, "--run", run, "--json")
    assert "tasks" not in json.loads(done.stdout)
    assert not RunDir(run).has(TASKS)


def test_what_cannot_be_asked_is_refused(place: Place, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "w1"}\n')
    good = write_task(tmp_path / "good.jsonl", 3, 4)
    for kind, arguments, words in (
        (DataError, ("--tasks", bad), "expected the fields of a known task"),
        (UsageError, ("--tasks", good, "--tasks", good), "two have one name"),
        (UsageError, ("--tasks", good, "--task-items", -1), "expected 1 or more, or 0 for all"),
    ):
        done = invoke(place, place.model, *arguments)
        assert done.exit_code == kind.exit_code, done.output
        assert words in done.stderr
        assert done.stdout == ""


def test_calibration_sets_are_compared_on_tasks_too(place: Place, tmp_path: Path) -> None:
    run, task = tmp_path / "run", write_task(tmp_path / "mine.jsonl", 20, 5)
    sets = ("--set", f"own={place.calibration}", "--domain", place.held_out, "--prediction-sequences", 0)
    sizes = ("--evaluation-sequences", 2, "--sequences", 8, "--length", 32, "--scheme", "w3a-g32", "--quiet")
    words = ("calibration", "compare", place.model, *sets, *sizes, "--run", run, "--tasks", task)
    done = CliRunner().invoke(application(), [str(word) for word in words])
    assert done.exit_code == 0, done.output
    found = RunDir(run).read(MATRIX, CalibrationMatrix).tasks
    assert [one.set for one in found] == ["own", "random tokens", "no calibration (rtn)"]
    said = [[item.candidate for item in one.run.tasks[0].items] for one in found]
    assert said[0] != said[1] != said[2]
    assert len({one.run.tasks[0].measures[0].reference.value for one in found}) == 1
    assert f"calibrated on own: {found[0].run.sentence}" in done.stdout
    assert "own: mine" in RunDir(run).file(REPORT).read_text()
    assert [identity.source for identity in RunDir(run).read(LOCK, Lock).data][-1] == "mine (mine.jsonl)"
