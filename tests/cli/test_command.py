"""What surrounds a workflow, with a command made for the test."""

import errno
import sys
import warnings
from dataclasses import dataclass, field

import pytest
import typer
from typer.testing import CliRunner

from quantriage.cli.command import NOT_PROVEN, Command, Outcome, register
from quantriage.errors import DataError, StorageError
from quantriage.records.types import Interval
from quantriage.stream.progress import Progress


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """`probe`: for the test."""

    what: str = field(metadata={"help": "what happens"})


def run(options: ProbeOptions, progress: Progress) -> Outcome:
    progress("probe", 1, 2)
    print("chatter of a library")
    match options.what:
        case "refused":
            raise DataError("text \x1b[31mtoo short\nby far")
        case "disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        case "bug":
            raise ZeroDivisionError
        case "interrupt":
            raise KeyboardInterrupt
        case "warning":
            warnings.warn("deprecated", FutureWarning, stacklevel=1)
    code = NOT_PROVEN if options.what == "unproven" else 0
    return Outcome(
        record=Interval(value=1.0, low=0.5, high=2.0), lines=("said " + "x" * 200,), exit_code=code
    )


def invoke(*arguments: str):  # type: ignore[no-untyped-def]
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    register(app, Command("probe", ProbeOptions, ("what",), run))
    return CliRunner().invoke(app, ["probe", *arguments])


def test_json_is_the_only_thing_on_stdout() -> None:
    done = invoke("fine", "--json")
    assert done.exit_code == 0
    assert done.stdout == '{"value":1.0,"low":0.5,"high":2.0}\n'
    assert "chatter" in done.stderr
    assert "probe: 1/2" in done.stderr


def test_lines_are_not_wrapped() -> None:
    assert invoke("fine", "--quiet").stdout == "said " + "x" * 200 + "\n"


def test_warnings_of_libraries_are_silent() -> None:
    assert "deprecated" not in invoke("warning").stderr


@pytest.mark.parametrize(
    ("what", "code", "line"),
    [
        ("refused", DataError.exit_code, "error: text \\x1b[31mtoo short by far"),
        ("disk", StorageError.exit_code, "error: [Errno 28] No space left on device"),
        ("interrupt", 130, "interrupted; the same command resumes where its run folder allows it"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(what: str, code: int, line: str) -> None:
    done = invoke(what, "--json", "--quiet")
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.splitlines() == ["chatter of a library", line]


def test_a_bug_is_not_hidden() -> None:
    assert isinstance(invoke("bug").exception, ZeroDivisionError)


def test_shipped_but_not_proven_has_its_own_code() -> None:
    done = invoke("unproven")
    assert done.exit_code == NOT_PROVEN
    assert done.stdout.startswith("said")


def test_stdout_is_given_back() -> None:
    before = sys.stdout
    invoke("refused")
    assert sys.stdout is before
