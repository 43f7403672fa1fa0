"""What every command does around its one workflow: parse, run, report errors, print, exit code.

A command is data: its options, which of them are positional, and a function from options to an `Outcome`.
stdout carries the result and nothing else, one JSON document under `--json`; everything else is on stderr.
"""

import contextlib
import errno
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import typer

from quantriage.cli import flags
from quantriage.cli.printable import printable
from quantriage.cli.progress import shown_progress
from quantriage.cli.quiet_libraries import quiet_libraries
from quantriage.errors import QuantriageError, StorageError
from quantriage.stream.progress import Progress

if TYPE_CHECKING:
    from rich.console import RenderableType

O = TypeVar("O")  # noqa: E741 - an options dataclass

NOT_PROVEN = 9
UNSOUND = 11
INTERRUPTED = 130
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


@dataclass(frozen=True, kw_only=True)
class Output:
    """How a command speaks, for all commands alike."""

    json: bool = field(default=False, metadata={"help": "print one JSON document on stdout"})
    quiet: bool = field(default=False, metadata={"help": "no progress on stderr"})
    debug: bool = field(
        default=False, metadata={"help": "tracebacks of errors, warnings of the libraries underneath"}
    )


@dataclass(frozen=True)
class Outcome:
    """What a command found. `record` is printed under --json, `lines` otherwise: strings and rich tables."""

    record: Any
    lines: tuple["RenderableType", ...]
    exit_code: int = 0


@dataclass(frozen=True)
class Command(Generic[O]):
    """One verb. The options' docstring begins with the name; the rest of it is the help."""

    name: str
    options: type[O]
    positional: tuple[str, ...]
    run: Callable[[O, Progress], Outcome]

    @property
    def help(self) -> str:
        """The options' docstring without the name in front."""
        text = inspect.cleandoc(self.options.__doc__ or "").removeprefix(f"`{self.name}`: ")
        return text[:1].upper() + text[1:]

    def parameters(self) -> tuple[flags.Parameter, ...]:
        """Arguments and flags, those of the output last."""
        return (*flags.parameters(self.options, self.positional), *flags.parameters(Output))


def register(app: typer.Typer, command: Command[Any]) -> None:
    """Add a command to the application."""

    def call(**parsed: Any) -> None:
        output = flags.build(Output, parsed)
        with _exit_codes(output.debug):
            with quiet_libraries(output.debug), shown_progress(output.quiet) as progress:
                outcome = command.run(flags.build(command.options, parsed), progress)
            _print(outcome, output.json)
        if outcome.exit_code:
            raise typer.Exit(outcome.exit_code)

    signature = flags.signature(command.parameters())
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    app.command(command.name, help=command.help, short_help=command.help)(call)


@contextlib.contextmanager
def _exit_codes(debug: bool) -> Iterator[None]:
    """Turn the errors a user can act on into one line and an exit code; others are bugs and propagate."""
    try:
        yield
    except QuantriageError as error:
        _fail(error, error.exit_code, debug)
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        _fail(error, StorageError.exit_code, debug)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command resumes where its run folder allows it\n")
        raise typer.Exit(INTERRUPTED) from None


def _fail(error: Exception, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    sys.stderr.write(f"error: {printable(str(error))}\n")
    raise typer.Exit(code)


def _print(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        import msgspec

        sys.stdout.write(msgspec.json.encode(outcome.record).decode() + "\n")
        return
    _print_lines(outcome.lines)


def _print_lines(lines: Sequence["RenderableType"]) -> None:
    """Strings go out unwrapped, so that paths stay whole; tables are drawn by rich."""
    from rich.console import Console

    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    for line in lines:
        if isinstance(line, str):
            sys.stdout.write(line + "\n")
        else:
            console.print(line)
