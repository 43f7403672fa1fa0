"""The tutorial says what its commands print. The commands themselves run in `make test-models`."""

import os
from pathlib import Path
from typing import Any

import pytest
import typer
from console_page import Step, compare, near, run, steps, unprinted

from benchmarks import tutorial
from quantriage.cli import flags
from quantriage.cli.app import COMMANDS, GROUPS, application
from quantriage.cli.command import Command
from small_models import Saved

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
STEPS = steps(PAGE)

SMALL = """
Text with 3.25 in it.

```console
$ first --flag \\
    value  # exit code 11
KL  0.1000 [0.0900, 0.1100]
...
$ second
```

```sh
$ not run
```
"""


def test_blocks_give_commands_exit_codes_and_what_they_print() -> None:
    first, second = steps(SMALL)
    assert (first.command, first.exit_code) == ("first --flag value", 11)
    assert first.printed == "KL  0.1000 [0.0900, 0.1100]\n...\n"
    assert (second.words, second.exit_code, second.printed) == (["second"], 0, "")


def test_a_block_without_a_command_is_refused() -> None:
    with pytest.raises(ValueError, match="must begin with a command"):
        steps("```console\noutput\n```\n")


@pytest.mark.parametrize(
    ("expected", "actual", "differences"),
    [
        ("KL 0.100 [0.090, 0.110]", "KL    0.105 [0.091, 0.110]\n", []),
        ("KL 0.100 [0.090, 0.110]", "KL 0.115 [0.090, 0.110]", ["0.115 instead of 0.100"]),
        ("KL 0.100", "perplexity 0.100", ["another text was printed"]),
        ("KL 0.100", "KL 0.100 and more", ["another text was printed"]),
        ("KL 0.100 ...", "KL 0.100 and\nmore", []),
        ("layers.3.mlp in w4a-g32", "layers.4.mlp in w4a-g32", ["another text was printed"]),
        ("42 sites", "42 sites", []),
        ("7 sites", "8 sites", ["8 instead of 7"]),
        ("-0.010", "+0.010", ["+0.010 instead of -0.010"]),
        ("21,912,568 bytes", "1,912,568 bytes", ["1,912,568 instead of 21,912,568"]),
    ],
)
def test_figures_have_a_tolerance_and_words_have_none(
    expected: str, actual: str, differences: list[str]
) -> None:
    assert compare(expected, actual) == differences


def test_the_last_digit_may_differ() -> None:
    assert near("0.01", "0.02")
    assert not near("0.01", "0.03")
    assert not near("1", "2")
    assert not near("1e-3", "1.2e-3")


def test_a_command_is_run_and_its_exit_code_held_against_the_page(llama: Saved) -> None:
    step = Step(1, f"quantriage lint {llama.folder}", 0, "")
    printed = run(step, llama.folder, {})
    assert compare("...21 sites, 0 errors, ... warnings in ... s, ... MB", printed) == []
    with pytest.raises(AssertionError, match="returned 0, not 11"):
        run(Step(1, step.command, 11, ""), llama.folder, {})


def verb_of(words: list[str]) -> tuple[str, list[str]]:
    """The verb, its group's word included, and what comes after it."""
    size = 2 if words[1] in GROUPS else 1
    return " ".join(words[1 : 1 + size]), words[1 + size :]


def options_of(words: list[str]) -> Any:
    """The options that the program makes of a command, by its own parser and checks; nothing is run."""
    verb, arguments = verb_of(words)
    known: dict[str, Command[Any]] = {command.name: command for command in COMMANDS}
    for group, (_, members) in GROUPS.items():
        known |= {f"{group} {command.name}": command for command in members}
    parser: Any = typer.main.get_command(application())
    for word in verb.split():
        parser = parser.commands[word]
    parsed = parser.make_context(verb, arguments).params
    return flags.build(known[verb].options, parsed)


OURS = [step.words for step in STEPS if step.words[0] == "quantriage"]


@pytest.mark.parametrize("words", OURS, ids=[verb_of(words)[0] for words in OURS])
def test_the_program_takes_every_command_of_the_page(words: list[str]) -> None:
    options_of(words)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("quantriage evaluate a b --texts t.txt", "No such option"),
        ("quantriage evaluate a b", "Missing parameter: text"),
        ("quantriage evaluate a b --text t.txt --length many", "valid int"),
        ("quantriage sweep a --calibration a --evaluate b --run c --choice colour", "--choice colour"),
    ],
)
def test_a_command_that_the_program_would_refuse_is_found(command: str, reason: str) -> None:
    with pytest.raises(Exception, match=reason):
        options_of(Step(1, command, 0, "").words)


def test_the_page_asks_everything_that_it_promises() -> None:
    asked = {"evaluate", "lint", "diagnose", "outliers", "calibration check", "sweep", "repair", "recover"}
    assert asked <= {verb_of(words)[0] for words in OURS}


def test_the_case_is_set_up_by_a_command_that_exists() -> None:
    made, entered = (step.words for step in STEPS if step.words[0] != "quantriage")
    assert made[:3] == ["python", "-m", "benchmarks.tutorial"]
    assert tutorial.parser().parse_args(made[3:]).folder == Path(entered[1])


def test_a_figure_must_stand_in_a_block_before_it() -> None:
    assert unprinted(
        "Was 3.25.\n\n```console\n$ first --n 7\nKL -3.25 of 42%\n```\n\nNow 3.25, 42% and 7.\n"
    ) == ["line 1: 3.25"]
    assert unprinted("```console\n$ first\nKL 3.25\n```\n\n| a |\n|---|\n| 3.2 |\n\n`4` w4a-g32\n") == [
        "line 8: 3.2"
    ]


def test_every_figure_in_the_text_was_printed_before() -> None:
    assert unprinted(PAGE) == []


@pytest.mark.models
def test_the_tutorial_from_beginning_to_end(tmp_path: Path) -> None:
    models = os.environ.get("QUANTRIAGE_MODELS")
    if models is None:
        pytest.skip("QUANTRIAGE_MODELS is not set")
    variables = {"QUANTRIAGE_MODELS": str(Path(models).resolve()), "PYTHONPATH": str(ROOT)}
    folder, wrong = tmp_path, []
    for step in STEPS:
        if step.words[0] == "cd":
            folder = folder / step.words[1]
            continue
        printed = run(step, folder, variables)
        differences = compare(step.printed, printed)
        if differences:
            wrong.append(f"line {step.line}: {step.command}\n{'; '.join(differences)}\n{printed}")
    assert not wrong, "\n\n".join(wrong)
