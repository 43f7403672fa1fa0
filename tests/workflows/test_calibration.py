"""The calibration verbs on a tiny model: from the command line, records and report, and what they find."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from tiny_run import Place
from typer.testing import CliRunner

from cli.word_model import WORDS, save_text
from quantriage.cli.app import GROUPS, application
from quantriage.cli.command import Command
from quantriage.data.build_file import read_token_file
from quantriage.errors import DataError, UsageError
from quantriage.records.calibration import (
    CHECK,
    MATRIX,
    SET,
    CalibrationCheck,
    CalibrationMatrix,
    CalibrationSet,
)
from quantriage.records.run_dir import LOCK, REPORT, RunDir
from quantriage.records.types import Lock
from quantriage.workflows.calibration_check import FIXED, check_set, fix_command
from quantriage.workflows.calibration_compare import named_path
from quantriage.workflows.calibration_options import BuildOptions, CheckOptions

SIZES = ("--sequences", "8", "--length", "32", "--scheme", "w3a-g32", "--quiet")


def invoke(*arguments: object):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(application(), ["calibration", *map(str, arguments)])


def narrow_prompts(path: Path, count: int) -> Path:
    """Prompts of nine words in a cycle, nothing like the random words of the other texts."""
    rows = [{"text": " ".join(WORDS[(7 * i + j) % 9] for j in range(12))} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_build_writes_a_file_that_quantizing_takes(place: Place, tmp_path: Path) -> None:
    out, run = tmp_path / "cal.safetensors", tmp_path / "run"
    source = ("--source", f"{place.calibration}=2", "--source", f"{place.held_out}=1")
    sizes = ("--sequences", 6, "--length", 24, "--out", out, "--run", run, "--quiet")
    done = invoke("build", place.model, *source, *sizes)
    assert done.exit_code == 0, done.stderr
    assert "calibration.txt: 4 windows (67%)" in done.stdout
    assert "are recommended" in done.stdout
    tokens, manifest = read_token_file(out)
    assert RunDir(run).read(SET, CalibrationSet) == manifest
    assert RunDir(run).read(LOCK, Lock).data[0].digest == tokens.digest
    assert RunDir(run).file(REPORT).is_file()
    again = place.quantize(tmp_path / "out", calibration=(out,), sequences=6, length=24)
    from quantriage.workflows.opened import open_model

    read = open_model(str(place.model)).tokens(again.calibration, 6, 24, "calibration")
    assert read.digest == tokens.digest


def test_compare_fills_the_matrix_and_resumes(place: Place, tmp_path: Path) -> None:
    other = save_text(tmp_path / "other.txt", seed=3, words=1200)
    sets = ("--set", f"first={place.calibration}", "--domain", place.held_out, "--domain", f"far={other}")
    sizes = ("--evaluation-sequences", 3, "--prediction-sequences", 2, "--run", tmp_path / "run", *SIZES)
    done = invoke("compare", place.model, *sets, *sizes)
    assert done.exit_code == 0, done.stderr
    found = RunDir(tmp_path / "run").read(MATRIX, CalibrationMatrix)
    assert [row.name for row in found.sets] == ["first", "random tokens", "no calibration (rtn)"]
    assert found.domain_names == ("held-out", "far")
    assert {(c.set, c.domain) for c in found.cells} == {
        (row.name, domain) for row in found.sets for domain in found.domain_names
    }
    assert all(c.kl.value > 0 and c.predicted_kl and c.predicted_kl > 0 for c in found.cells)
    assert [a.pairs for a in found.agreements] == [6, 4]
    assert "Random tokens are the worst calibration on" in done.stdout
    again = invoke("compare", place.model, *sets, *sizes, "--json")
    assert again.exit_code == 0, again.stderr
    assert (
        json.loads(again.stdout)["cells"]
        == json.loads(RunDir(tmp_path / "run").file(MATRIX).read_text())["cells"]
    )


def test_compare_refuses_a_set_that_holds_the_domain(place: Place, tmp_path: Path) -> None:
    sets = (
        "--set",
        f"a={place.calibration}",
        "--domain",
        f"b={place.calibration}",
        "--run",
        tmp_path / "run",
    )
    done = invoke("compare", place.model, *sets, *SIZES)
    assert done.exit_code == DataError.exit_code
    assert "has the same content" in done.stderr


@pytest.mark.parametrize(("text", "name"), [("a=b.txt", "a"), ("x/b.txt", "b"), ("=b.txt", "=b")])
def test_names_of_sets(text: str, name: str) -> None:
    assert named_path(text)[0] == name


def check_options(place: Place, production: Path, run: Path, **changes: object) -> CheckOptions:
    given: dict[str, object] = {"scheme": "w3a-g32", "sequences": 8, "length": 32, "production_sequences": 12}
    paths = {
        "model": str(place.model),
        "calibration": place.calibration,
        "production": production,
        "run": run,
    }
    return CheckOptions(**paths | given | changes)  # type: ignore[arg-type]


def test_check_finds_foreign_production_and_the_fix_regains_it(place: Place, tmp_path: Path) -> None:
    production = narrow_prompts(tmp_path / "prompts.jsonl", 60)
    options = check_options(place, production, tmp_path / "run", fix=True)
    found = check_set(options)
    run = RunDir(tmp_path / "run")
    assert run.read(CHECK, CalibrationCheck) == found
    assert all(test.p_value < 0.01 for test in found.tests)
    cost = found.cost
    assert cost is not None
    assert cost.measured is not None
    assert cost.measured_fixed is not None
    assert cost.difference is not None
    assert cost.difference.high < 0
    assert cost.measured_fixed.value < 0.7 * cost.measured.value
    assert cost.predicted_fixed < cost.predicted
    assert list(found.gains) == sorted(found.gains, reverse=True)
    fixed, _ = read_token_file(run.file(FIXED))
    assert fixed.sequences == 8 + cost.windows_added
    ends = {tuple(row) for row in fixed.tokens[8:].tolist()}
    assert len(ends) == cost.windows_added
    assert cost.held_out is not None
    assert cost.held_out.digest != found.production.digest
    assert found.next_command == ""


def test_check_of_the_same_text_is_quiet(place: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = check_options(place, place.calibration, run, statistics_only=True, sequences=12)
    found = check_set(options)
    assert found.verdict == "covered"
    assert not any(record.alarm for record in found.inputs)
    assert found.cost is None
    assert all(record.calibrated_error is None for record in found.inputs)


def test_the_command_it_names_can_be_parsed(place: Place, tmp_path: Path) -> None:
    options = check_options(place, tmp_path / "my prompts.jsonl", tmp_path / "run", add=3, seed=2)
    words = shlex.split(fix_command(options))
    assert words[:3] == ["quantriage", "calibration", "check"]
    known = {p.flag for c in GROUPS["calibration"][1] if c.name == "check" for p in c.parameters()}
    assert {word for word in words if word.startswith("--")} <= known
    assert str(tmp_path / "my prompts.jsonl") in words


@pytest.mark.parametrize("command", GROUPS["calibration"][1], ids=lambda c: c.name)
def test_every_command_has_help(command: Command[object]) -> None:
    done = invoke(command.name, "--help")
    assert done.exit_code == 0
    assert "Usage:" in done.stdout
    for parameter in command.parameters():
        assert parameter.flag in done.stdout


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="packed or document"):
        BuildOptions(model="m", source=("a",), out=Path("o"), packing="loose")
    with pytest.raises(UsageError, match="2 or more"):
        CheckOptions(model="m", run=Path("r"), calibration=Path("a"), production=Path("b"), length=1)


def test_seeds_give_other_random_tokens(place: Place) -> None:
    from quantriage.data.build import random_tokens
    from quantriage.workflows.opened import open_model

    opened = open_model(str(place.model), dtype="float32")
    tokenizer = opened.checkpoint.tokenizer()
    first, second = (random_tokens(tokenizer, opened.model.vocab_size, 4, 16, seed) for seed in (0, 1))
    assert not torch.equal(first.tokens, second.tokens)
