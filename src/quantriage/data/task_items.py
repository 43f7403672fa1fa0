"""Multiple-choice files to items: what is put before a model, and which text after it is scored.

The prompts are those of lm-evaluation-harness without examples, so that accuracies compare with published
ones. The harness itself is the oracle and no dependency: it brings 39 packages of 400 MB and a model class
that holds the whole model, for prompts that are one line each (benchmarks/tasks_oracle.py holds both against
each other). A file is a stranger's: its size, its lines and its choices are bounded, and what has the fields
of no known task is refused.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantriage.errors import DataError
from quantriage.records.digest import file_digest

LARGEST_FILE = 256_000_000  # bytes
LONGEST_LINE = 64_000  # bytes; HellaSwag's longest validation row has 2,098
MOST_CHOICES = 26
SEED = 0  # of the sample, the same for every model


@dataclass(frozen=True)
class TaskItem:
    """One question. `row`: its line in the file, from 1. `gold`: index of the right choice.

    pairs: for each choice a prompt and the text after it whose likelihood is asked for. lengths: characters
    of each choice, None where the scored text is the same for all.
    """

    row: int
    pairs: tuple[tuple[str, str], ...]
    lengths: tuple[int, ...] | None
    gold: int


@dataclass(frozen=True)
class TaskSet:
    """The items of one file that are asked. `available`: how many it has. `digest`: sha256 of the file."""

    name: str
    layout: str
    source: str
    digest: str
    available: int
    items: tuple[TaskItem, ...]


@dataclass(frozen=True)
class _Layout:
    """A kind of file: the fields that tell it, and how a row becomes an item."""

    fields: tuple[str, ...]
    read: Callable[["_Fields", int], TaskItem]


def read_task(text: str, items: int) -> TaskSet:
    """The file of [NAME=]PATH, at most `items` of it (0: all), drawn with a fixed seed. Raises DataError.

    A NAME that is a layout says how to read the file, any other only what to call it. Memory: the file; rows
    that are not drawn are never parsed.
    """
    name, path = _named(text)
    lines = _lines(path)
    if not lines:
        raise DataError(f"{path}: no rows; expected one JSON object a line")
    layout = name if name in LAYOUTS else _told_by_fields(path, _object(*lines[0], path))
    chosen = list(range(len(lines)))
    if 0 < items < len(lines):
        chosen = sorted(np.random.default_rng(SEED).choice(len(lines), size=items, replace=False).tolist())
    read = LAYOUTS[layout].read
    return TaskSet(
        name=name or path.stem,
        layout=layout,
        source=path.name,
        digest=file_digest(path),
        available=len(lines),
        items=tuple(read(_object(*lines[i], path), lines[i][0]) for i in chosen),
    )


def _named(text: str) -> tuple[str, Path]:
    """[NAME=]PATH, the name empty if there is none; a file whose name has = in it is a file."""
    name, separator, path = text.partition("=")
    return (name, Path(path)) if separator and name and path and not Path(text).exists() else ("", Path(text))


def _told_by_fields(path: Path, row: "_Fields") -> str:
    for name, layout in LAYOUTS.items():
        if all(field in row.row for field in layout.fields):
            return name
    found = ", ".join(map(repr, row.row))[:160] or "no fields"
    known = "; ".join(f"{name} ({', '.join(layout.fields)})" for name, layout in LAYOUTS.items())
    raise DataError(
        f"{path}: rows with {found}; expected the fields of a known task: {known}. Rename the fields, for "
        "example to query, choices and gold"
    )


def _lines(path: Path) -> list[tuple[int, bytes]]:
    """(number, content) of every line that is not blank."""
    found = []
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise DataError(f"{path}: {size} bytes, at most {LARGEST_FILE} are read; split the file")
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise DataError(
                        f"{path}, line {number}: longer than {LONGEST_LINE} bytes; expected one question a "
                        "line, as .jsonl"
                    )
                if line.strip():
                    found.append((number, line))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected a .jsonl file") from error
    return found


def _object(number: int, line: bytes, path: Path) -> "_Fields":
    where = f"{path}, line {number}"
    try:
        row = json.loads(line.decode("utf-8-sig"))
        if b"\\u" in line:  # half a surrogate pair could be neither tokenised nor printed
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error}); expected one object a line") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {type(row).__name__}, expected an object")
    return _Fields(where, row)


# -- rows


@dataclass(frozen=True)
class _Fields:
    """One row, each field taken only as what it should be."""

    where: str
    row: Mapping[str, object]

    def wrong(self, name: str, expected: str) -> DataError:
        """The error that `name` is not what was expected."""
        found = f"{self.row[name]!r:.60}" if name in self.row else "nothing"
        return DataError(f"{self.where}: {name!r} is {found}; expected {expected}")

    def text(self, name: str) -> str:
        """A string that is not blank."""
        value = self.row.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(name, "a text")
        return value

    def optional_text(self, name: str) -> str:
        """A string, perhaps empty."""
        value = self.row.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def texts(self, name: str, value: object) -> tuple[str, ...]:
        """`value`, which stands under `name`, as two or more strings that are not blank."""
        good = isinstance(value, list) and 2 <= len(value) <= MOST_CHOICES
        if not good or not all(isinstance(one, str) and one.strip() for one in value):  # type: ignore[attr-defined]
            raise self.wrong(name, f"a list of 2 to {MOST_CHOICES} texts")
        return tuple(value)  # type: ignore[arg-type]

    def index(self, name: str, count: int, first: int = 0) -> int:
        """A whole number, perhaps written as a string, from `first`; the index of one of `count` choices."""
        value = self.row.get(name)
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value - first < count:
            hint = "; a test split without answers cannot be scored" if value in ("", -1) else ""
            raise self.wrong(name, f"{first} to {first + count - 1}{hint}")
        return value - first


def _asked(row: int, prompt: str, choices: tuple[str, ...], gold: int) -> TaskItem:
    """Choices that stand after one prompt, a space between."""
    pairs = tuple((prompt, f" {choice}") for choice in choices)
    return TaskItem(row, pairs, tuple(map(len, choices)), gold)


def _hellaswag(fields: _Fields, row: int) -> TaskItem:
    before = f"{fields.text('ctx_a')} {fields.optional_text('ctx_b').capitalize()}"
    endings = tuple(map(_without_marks, fields.texts("endings", fields.row.get("endings"))))
    prompt = _without_marks(f"{fields.text('activity_label')}: {before}")
    return _asked(row, prompt, endings, fields.index("label", len(endings)))


def _without_marks(text: str) -> str:
    """WikiHow's [title] and other bracketed marks, which are no text, taken out."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _piqa(fields: _Fields, row: int) -> TaskItem:
    prompt = _question(fields.text("goal"))
    return _asked(row, prompt, (fields.text("sol1"), fields.text("sol2")), fields.index("label", 2))


def _arc(fields: _Fields, row: int) -> TaskItem:
    choices, gold = _lettered(fields)
    return _asked(row, _question(fields.text("question")), choices, gold)


def _openbookqa(fields: _Fields, row: int) -> TaskItem:
    choices, gold = _lettered(fields)
    return _asked(row, fields.text("question_stem"), choices, gold)


def _sciq(fields: _Fields, row: int) -> TaskItem:
    names = ("distractor1", "distractor2", "distractor3", "correct_answer")
    prompt = f"{fields.optional_text('support').lstrip()}\n{_question(fields.text('question'))}"
    return _asked(row, prompt, tuple(map(fields.text, names)), 3)


def _winogrande(fields: _Fields, row: int) -> TaskItem:
    """The options stand before the text that is scored, which is the same for both."""
    before, blank, after = fields.text("sentence").partition("_")
    if not blank or not after.strip():
        raise fields.wrong("sentence", "a blank written as _, and text after it")
    scored = f" {after.strip()}"
    pairs = tuple((before + fields.text(name), scored) for name in ("option1", "option2"))
    return TaskItem(row, pairs, None, fields.index("answer", 2, first=1))


def _plain(fields: _Fields, row: int) -> TaskItem:
    choices = fields.texts("choices", fields.row.get("choices"))
    return _asked(row, fields.text("query"), choices, fields.index("gold", len(choices)))


def _question(text: str) -> str:
    return f"Question: {text}\nAnswer:"


def _lettered(fields: _Fields) -> tuple[tuple[str, ...], int]:
    """Choices {text, label} and the index of the label in answerKey."""
    given = fields.row.get("choices")
    if not isinstance(given, dict):
        raise fields.wrong("choices", "an object with text and label")
    choices = fields.texts("choices", given.get("text"))
    labels = given.get("label")
    if not isinstance(labels, list) or len(labels) != len(choices):
        raise fields.wrong("choices", "as many labels as texts")
    key = fields.optional_text("answerKey").strip()
    if key not in labels:
        raise fields.wrong("answerKey", f"one of the labels {', '.join(map(str, labels))[:60]}")
    return choices, labels.index(key)


LAYOUTS: dict[str, _Layout] = {
    "hellaswag": _Layout(("activity_label", "ctx_a", "ctx_b", "endings", "label"), _hellaswag),
    "piqa": _Layout(("goal", "sol1", "sol2", "label"), _piqa),
    "winogrande": _Layout(("sentence", "option1", "option2", "answer"), _winogrande),
    "sciq": _Layout(("question", "support", "correct_answer", "distractor1"), _sciq),
    "openbookqa": _Layout(("question_stem", "choices", "answerKey"), _openbookqa),
    "arc": _Layout(("question", "choices", "answerKey"), _arc),
    "choices": _Layout(("query", "choices", "gold"), _plain),
}
"""Kinds of files by name. `choices` is anybody's own: a query, what may follow it, the right one's index."""
