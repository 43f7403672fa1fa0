"""Tasks of several checkpoints in one call: the reference itself loses nothing, and nothing is run twice."""

import json
import random
import shutil
from pathlib import Path

import pytest
from benchmarks.faults.reference import pico
from benchmarks.peers import tasks
from benchmarks.peers.tasks import main


@pytest.fixture(scope="module")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)

    def words() -> str:
        return " ".join(f"w{draw.randrange(40)}" for _ in range(4))

    path = tmp_path_factory.mktemp("tasks") / "piqa.jsonl"
    rows = [
        {"goal": words(), "sol1": words(), "sol2": words(), "label": draw.randrange(2)} for _ in range(12)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_copy_loses_nothing_and_a_second_call_runs_nothing(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = pico(tmp_path)
    copy = shutil.copytree(reference, tmp_path / "copy")
    words = [str(reference), str(copy), "--tasks", str(task_file), "--items", "8"]
    words += ["--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["tasks", *words])
    main()
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("| copy | piqa, acc_norm | 8 |")
    assert line.endswith("| +0.0 (+0.0 to +0.0) | 0 / 0 | 1 |")
    monkeypatch.setattr(tasks, "task_bench", None)  # a call would fail
    main()
    assert capsys.readouterr().out.splitlines()[-1] == line
    monkeypatch.setattr("sys.argv", ["tasks", *("7" if word == "8" else word for word in words)])
    with pytest.raises(SystemExit):
        main()
    assert "has other tasks or items; choose another --out" in capsys.readouterr().err


def test_candidates_of_one_name_are_refused(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model", "a/x", "b/x", "--tasks", str(task_file), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["tasks", *words])
    with pytest.raises(SystemExit):
        main()
    assert "expected different names" in capsys.readouterr().err
