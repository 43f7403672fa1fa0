"""Command-line parameters out of a frozen options dataclass, and the dataclass back out of what was parsed.

One derivation for every command: the field's name gives the flag, its type the parser, its default the
default, its metadata the help. A list of flags beside each command was rejected: it is a second copy of the
options and drifts from them. Importing this file costs no torch, so `--help` stays quick.
"""

import inspect
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import typer

O = TypeVar("O")  # noqa: E741 - an options dataclass

METAVARS: dict[type, str] = {str: "TEXT", Path: "PATH", int: "INTEGER", float: "NUMBER"}


@dataclass(frozen=True)
class Parameter:
    """One option or argument. `element` is what a single value is; `many` means it may be repeated."""

    name: str
    element: type
    many: bool
    required: bool
    default: Any
    help: str
    positional: bool

    @property
    def flag(self) -> str:
        """What a user types: `--state-gb`, or `MODEL` for an argument."""
        return self.name.upper() if self.positional else "--" + self.name.replace("_", "-")


def parameters(options: type, positional: Sequence[str] = ()) -> tuple[Parameter, ...]:
    """The parameters of an options dataclass: arguments as in `positional`, then flags as declared."""
    hints = get_type_hints(options)
    found = {f.name: _parameter(f, hints[f.name], f.name in positional) for f in fields(options)}
    first = [found.pop(name) for name in positional]
    return (*first, *found.values())


def signature(parameters: Sequence[Parameter]) -> inspect.Signature:
    """The signature from which typer builds a command, keyword-only."""
    return inspect.Signature(
        [
            inspect.Parameter(
                p.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if p.required else p.default,
                annotation=Annotated[_annotation(p), _declaration(p)],
            )
            for p in parameters
        ]
    )


def build(options: type[O], parsed: Mapping[str, Any]) -> O:
    """The options that were parsed; raises what their own checks raise."""
    values = {f.name: parsed[f.name] for f in fields(options)}  # type: ignore[arg-type]
    return options(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})


def _parameter(declared: Field[Any], hint: Any, positional: bool) -> Parameter:
    element, many = _element(hint)
    required = declared.default is MISSING
    return Parameter(
        name=declared.name,
        element=element,
        many=many,
        required=required,
        default=None if required else declared.default,
        help=str(declared.metadata["help"]),
        positional=positional,
    )


def _element(hint: Any) -> tuple[type, bool]:
    """The type of one value, and whether there may be several: tuple[Path, ...], Path | None, or plain."""
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    if get_origin(hint) in (Union, types.UnionType):
        (element,) = (part for part in get_args(hint) if part is not type(None))
        return element, False
    return hint, False


def _annotation(parameter: Parameter) -> Any:
    if parameter.many:
        return list[parameter.element]  # type: ignore[name-defined]
    if not parameter.required and parameter.default is None:
        return parameter.element | None
    return parameter.element


def _declaration(parameter: Parameter) -> Any:
    text = f"{parameter.help}; may be repeated" if parameter.many else parameter.help
    if parameter.positional:
        return typer.Argument(help=text, show_default=False, metavar=parameter.flag)
    switch = parameter.element is bool
    shown = not (parameter.required or switch or parameter.default in (None, ()))
    metavar = None if switch else METAVARS[parameter.element]
    return typer.Option(parameter.flag, help=text, show_default=shown, metavar=metavar)
