"""The `quantriage` program: one file per command, listed here.

typer parses; nothing else of it is used. Its rich help is off: plain help starts faster, and can be read in
a log. Workflows are imported inside the commands, so `--help` and usage errors never import torch.
"""

import sys
from typing import Annotated, Any

import typer

import quantriage
from quantriage.cli import (
    advise,
    bench,
    bisect,
    calibration,
    compare,
    demo,
    diagnose,
    evaluate,
    lint,
    outliers,
    plan,
    quantize,
    recover,
    repair,
    report,
    sensitivity,
    sweep,
)
from quantriage.cli.command import Command, register

COMMANDS: tuple[Command[Any], ...] = (
    recover.COMMAND,
    sensitivity.COMMAND,
    plan.COMMAND,
    quantize.COMMAND,
    evaluate.COMMAND,
    lint.COMMAND,
    outliers.COMMAND,
    compare.COMMAND,
    diagnose.COMMAND,
    bisect.COMMAND,
    repair.COMMAND,
    sweep.COMMAND,
    bench.COMMAND,
    advise.COMMAND,
    report.COMMAND,
    demo.COMMAND,
)
GROUPS: dict[str, tuple[str, tuple[Command[Any], ...]]] = {
    calibration.GROUP: (calibration.HELP, calibration.COMMANDS),
}
"""Commands under a word of their own: its help, and what comes after it."""


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"quantriage {quantriage.__version__}\n")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    pass


def application() -> typer.Typer:
    """The program with all its commands."""
    app = typer.Typer(
        name="quantriage",
        help=(quantriage.__doc__ or "").partition("\n")[0].removeprefix("quantriage: ").capitalize(),
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        no_args_is_help=True,
    )
    app.callback()(_root)
    for command in COMMANDS:
        register(app, command)
    for name, (text, commands) in GROUPS.items():
        group = typer.Typer(
            name=name, help=text, rich_markup_mode=None, add_completion=False, no_args_is_help=True
        )
        for command in commands:
            register(group, command)
        app.add_typer(group)
    return app


def main() -> None:
    """Entry point of the `quantriage` command."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a character that the terminal cannot show must not end a long run
            reconfigure(errors="backslashreplace")
    application()(prog_name="quantriage")
