"""The verbs on a tiny real model, through the command line: exit codes, stdout, and what lies on disk."""

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result
from word_model import save_model, save_text

from quantriage.cli.app import application
from quantriage.errors import BudgetError, DataError, UsageError
from quantriage.records.types import Plan, Proof, RunSummary


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and two texts."""
    folder = tmp_path_factory.mktemp("place")
    save_model(folder / "model")
    save_text(folder / "calibration.txt", seed=1, words=4800)
    save_text(folder / "held-out.txt", seed=2, words=2400)
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(application(), [str(a) for a in arguments])


SMALL = ("--sequences", 4, "--length", 32)


def test_sensitivity_names_the_worst_site_and_writes_a_report(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    text = place / "calibration.txt"
    done = invoke("sensitivity", place / "model", "--calibration", text, "--run", run, *SMALL)
    assert done.exit_code == 0, done.stderr
    assert "14 sites scored" in done.stdout
    assert "model.layers." in done.stdout
    assert f"report: {run / 'report.html'}" in done.stdout
    assert (run / "report.html").is_file()
    assert "sensitivity: backward: 1/2" in done.stderr


def test_a_plan_under_a_budget_is_yaml_or_one_json_record(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start = ("sensitivity", place / "model", "--calibration", place / "calibration.txt", "--run", run)
    assert invoke(*start, "--target", "transformers", *SMALL, "--quiet", "--json").exit_code == 0
    shown = invoke("plan", run, "--bpw", 4.5, "--target", "transformers", "--quiet")
    assert shown.exit_code == 0, shown.stderr
    assert "target: transformers" in shown.stdout
    record = msgspec.json.decode(invoke("plan", run, "--bpw", 4.5, "--json").stdout, type=Plan)
    assert 4.0 < record.bits_per_weight <= 4.5
    assert len(record.assignments) == 14
    assert invoke("plan", run, "--bpw", 1.0).exit_code == BudgetError.exit_code


def test_a_model_evaluated_against_itself_has_lost_nothing(place: Path) -> None:
    model = place / "model"
    start = ("evaluate", model, model, "--text", place / "held-out.txt", *SMALL)
    done = invoke(*start, "--json")
    assert done.exit_code == 0, done.stderr
    (result,) = msgspec.json.decode(done.stdout, type=Proof).results
    assert result.kl.value < 1e-6
    assert result.top1_agreement.value == 1.0
    shown = invoke(*start, "--quiet")
    assert "100.0%" in shown.stdout
    assert shown.stderr == ""


def test_json_of_a_verb_is_its_record_alone(place: Path, tmp_path: Path) -> None:
    text = place / "calibration.txt"
    done = invoke(
        *(
            "quantize",
            place / "model",
            "--calibration",
            text,
            "--scheme",
            "w4a-g32",
            "--out",
            tmp_path / "out",
        ),
        *("--target", "transformers", *SMALL, "--json", "--quiet"),
    )
    assert done.exit_code == 0, done.stderr
    assert msgspec.json.decode(done.stdout, type=RunSummary).target == "transformers"
    assert done.stderr == ""
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]


def test_what_cannot_be_taken_ends_with_its_own_exit_code(place: Path, tmp_path: Path) -> None:
    text = place / "calibration.txt"
    start = ("quantize", place / "model", "--calibration", text, "--out", tmp_path / "out", "--quiet", *SMALL)
    cases = {
        BudgetError.exit_code: ("--scheme", "w9x"),
        UsageError.exit_code: (),
        DataError.exit_code: ("--scheme", "w4a-g32", "--length", 4000),
    }
    for code, extra in cases.items():
        done = invoke(*start, *extra)
        assert done.exit_code == code, done.output
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert not (tmp_path / "out").exists()
