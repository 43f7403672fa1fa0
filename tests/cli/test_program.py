"""The program as a user meets it: in a process of its own, judged by exit code, stdout and stderr."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import quantriage
from quantriage.cli.app import COMMANDS
from quantriage.errors import (
    ArchitectureError,
    BudgetError,
    CheckpointError,
    DataError,
    QuantriageError,
    ResumeError,
    StorageError,
    UsageError,
)

START = "from quantriage.cli.app import main; main()"
SILENT_ABOUT_TORCH = """
import sys
from quantriage.cli.app import main
try:
    main()
finally:
    loaded = [m for m in ("torch", "transformers", "numpy", "rich.progress") if m in sys.modules]
    assert not loaded, loaded
"""
COUNTED = """
import sys
from quantriage.cli.app import main
try:
    main()
finally:
    print(len(sys.modules), file=sys.stderr)
"""


def program(*arguments: str, code: str = START) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("arguments", [[], *([c.name] for c in COMMANDS)], ids=lambda a: " ".join(a) or "-")
def test_help_imports_no_torch(arguments: list[str]) -> None:
    done = program(*arguments, "--help", code=SILENT_ABOUT_TORCH)
    assert done.returncode == 0, done.stderr
    assert "Usage: quantriage" in done.stdout
    assert done.stderr == ""


def test_help_loads_few_modules() -> None:
    # Their number, not a time: 444 take 0.29 s on a quiet machine and 0.7 s on the same one under load. numpy
    # alone would add 140, jinja2 100.
    done = program("recover", "--help", code=COUNTED)
    assert int(done.stderr) < 500


def test_every_flag_of_every_command_is_in_its_help() -> None:
    for command in COMMANDS:
        text = program(command.name, "--help").stdout
        for parameter in command.parameters():
            assert parameter.flag in text


def test_version() -> None:
    assert program("--version").stdout == f"quantriage {quantriage.__version__}\n"


def test_a_missing_option_is_a_usage_error() -> None:
    done = program("recover", "model")
    assert (done.returncode, done.stdout) == (UsageError.exit_code, "")
    assert "--calibration" in done.stderr


def test_an_option_out_of_range_is_a_usage_error_in_one_line(tmp_path: Path) -> None:
    done = program("sensitivity", "m", "--calibration", "t", "--run", str(tmp_path), "--length", "1")
    assert done.returncode == UsageError.exit_code
    assert done.stderr == "error: --length 1: expected 2 or more\n"


def test_a_missing_model_is_one_line_and_exit_code_3(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words " * 100)
    hostile = tmp_path / "\x1b[2J[bold]nowhere"
    done = program("sensitivity", str(hostile), "--calibration", str(text), "--run", str(tmp_path / "r"))
    assert (done.returncode, done.stdout) == (CheckpointError.exit_code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "\\x1b[2J[bold]nowhere" in line


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = program("report", str(tmp_path / "nowhere"), "--debug")
    assert done.returncode == QuantriageError.exit_code
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in program("report", str(tmp_path / "nowhere")).stderr


def test_report_prints_one_json_document(tmp_path: Path) -> None:
    summary = {
        "title": "t",
        "model": "m",
        "target": "vllm",
        "budget": None,
        "verdict": None,
        "stages": [],
        "findings": [],
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    done = program("report", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"report": str(tmp_path / "report.html")}
    assert (tmp_path / "report.html").is_file()


def test_exit_codes_are_distinct() -> None:
    kinds = [
        QuantriageError,
        UsageError,
        CheckpointError,
        DataError,
        BudgetError,
        ArchitectureError,
        ResumeError,
        StorageError,
    ]
    assert [kind.exit_code for kind in kinds] == list(range(1, 9))
