"""Rules for modules by regular expression, as the configs of checkpoints have them, matched in bounded time.

Python's matcher backtracks: `(a+)+$` on a name of forty letters runs for years, and a config is a stranger's
file. Names need a few wildcards and alternatives, so repeated groups and back references are refused, and
what else could multiply is counted before anything is matched. Another matching engine would lift these
limits for one more dependency.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial, prod
from typing import NamedTuple

from quantriage.errors import CheckpointError

_MOST_STEPS = 10_000_000  # about a tenth of a second for a name
_MOST_SECONDS = 30.0  # for all names of a checkpoint together
_USUAL_NAME, _LONGEST_NAME = 64, 256
_LONGEST = 20_000  # characters: the modules of a large model in one alternation
_MOST_RULES = 1000  # beside those that spell out one name
_REFUSED = re.compile(
    r"\\[1-9]|\(\?P=|\(\?#|\(\?[a-zA-Z]*x"
)  # back references; comments, which could hide a part
_ONE_NAME = re.compile(r"\^((?:[\w-]|\\[.\-])+)\$")


def compile_pattern(text: str, where: str, searched: bool = False) -> re.Pattern[str]:
    """The expression, if matching a name, or searching one, ends soon. Raises CheckpointError."""
    shown = f"{where}: pattern {text[:100]!r}"
    if len(text) > _LONGEST:
        raise CheckpointError(f"{shown}... has {len(text)} characters; at most {_LONGEST} are read")
    try:
        compiled = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{shown} is no regular expression") from error
    plain = _without_classes(text)
    if re.search(r"\)[*+{]", plain) or _REFUSED.search(text):
        raise CheckpointError(
            f"{shown} repeats a group, refers back or has comments, which names do not need"
        )
    if steps(_repeats(plain, searched), _ways(plain), _USUAL_NAME) > _MOST_STEPS:
        raise CheckpointError(f"{shown} has too many wildcards and alternatives to be matched in time")
    return compiled


def _without_classes(text: str) -> str:
    """A valid expression with each escape and each class in brackets as one letter; one pass over it."""
    kept: list[str] = []
    place, inside = 0, -1  # where the class began
    while place < len(text):
        sign = text[place]
        if sign == "\\":
            place += 1
        if inside < 0:
            inside = place if sign == "[" else -1
            kept.append("x" if sign in "\\[" else sign)
        elif sign == "]" and text[inside + 1 : place] not in (
            "",
            "^",
        ):  # a bracket that comes first is a member
            inside = -1
        place += 1
    return "".join(kept)


def steps(repeats: int, ways: int, length: int) -> int:
    """Ways that a name of `length` can be divided between wildcards, times those of alternatives, at most."""
    places: int = length**repeats // factorial(repeats)
    return places * ways


def refuse_slow(started: float, where: str) -> None:
    """Raise CheckpointError if matching names, since `started` on the process's clock, takes too long.

    Each match is short, but rules times names is a number that the file chooses.
    """
    if time.process_time() - started > _MOST_SECONDS:
        raise CheckpointError(
            f"{where}: matching module names to patterns takes over {_MOST_SECONDS:.0f} s; name them in full"
        )


def _repeats(plain: str, searched: bool) -> int:
    """Wildcards of any length; a search begins anywhere, which is one more."""
    return sum(plain.count(sign) for sign in "*+{") + searched


def _ways(plain: str) -> int:
    """Combinations of optional parts and alternatives, at most."""
    optional = len(re.findall(r"(?<![(*+?}])\?", plain))
    closed, open_groups = [], [1]
    for sign in re.findall(r"[(|)]", plain):
        if sign == "(":
            open_groups.append(1)
        elif sign == "|":
            open_groups[-1] += 1
        elif len(open_groups) > 1:
            closed.append(open_groups.pop())
    return (1 << min(optional, _USUAL_NAME)) * prod(closed) * prod(open_groups)


class _Rule(NamedTuple):
    """An expression with its place among the rules and what it costs."""

    number: int
    expression: re.Pattern[str]
    repeats: int
    ways: int


@dataclass(frozen=True)
class Patterns:
    """Expressions in order, matched from the start of a name or searched in it. Use `read_patterns`."""

    names: dict[str, int]  # by the one name that an expression spells out
    expressions: tuple[_Rule, ...]
    searched: bool
    where: str

    def first(self, name: str) -> int | None:
        """The number of the first expression that matches. Raises CheckpointError for an endless name."""
        named = self.names.get(name)
        if self.expressions and len(name) > _LONGEST_NAME:
            raise CheckpointError(
                f"{self.where}: a name of {len(name)} characters is not matched by patterns"
            )
        for number, expression, repeats, ways in self.expressions:
            if named is not None and number > named:
                break
            if len(name) > _USUAL_NAME and steps(repeats, ways, len(name)) > 10 * _MOST_STEPS:
                raise CheckpointError(
                    f"{self.where}: pattern {expression.pattern[:100]!r} has too many wildcards for a name "
                    f"of {len(name)} characters"
                )
            if expression.search(name) if self.searched else expression.match(name):
                return number
        return named


def read_patterns(texts: Sequence[str], where: str, searched: bool = False) -> Patterns:
    """Whole names are looked up: rules for thousands of experts cost nothing. Raises CheckpointError."""
    names: dict[str, int] = {}
    expressions: list[_Rule] = []
    for number, text in enumerate(texts):
        found = _ONE_NAME.fullmatch(text)
        if found is not None:
            names.setdefault(found[1].replace("\\", ""), number)
        elif len(expressions) < _MOST_RULES:
            compiled, plain = compile_pattern(text, where, searched), _without_classes(text)
            expressions.append(_Rule(number, compiled, _repeats(plain, searched), _ways(plain)))
        else:
            raise CheckpointError(f"{where}: more than {_MOST_RULES} patterns; name the modules in full")
    return Patterns(names, tuple(expressions), searched, where)
