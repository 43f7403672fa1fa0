"""What a calibration set is built from: text files, chat logs and hub data sets, each with a weight.

A source is written `PATH=0.5` or `hub:REPO:CONFIG@SPLIT=0.5`, the weight being optional. Hub data sets come
through the `datasets` library, an extra, and are streamed: a corpus of terabytes gives its first rows.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantriage.data.text import PLAIN_SUFFIXES, load_documents, row_text
from quantriage.errors import DataError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB = "hub:"
_BLANK = re.compile(r"(\n[ \t]*\n\s*)")
_LINE = re.compile(r"(\n)")


@dataclass(frozen=True)
class Source:
    """Where text comes from and how much of the set it is to be. place: a path, or REPO[:CONFIG][@SPLIT]."""

    place: str
    weight: float
    hub: bool

    @property
    def name(self) -> str:
        """What a person calls it."""
        return self.place if self.hub else Path(self.place).name


@dataclass(frozen=True)
class Document:
    """One document in passages: each is judged by itself, and goes with the separator that follows it."""

    passages: tuple[tuple[str, str], ...]


def parse_source(text: str) -> Source:
    """A source out of what a user wrote. Raises UsageError."""
    place, separator, weight = text.rpartition("=")
    value = 1.0
    if separator:
        try:
            value = float(weight)
        except ValueError:
            place = text  # an equals sign in a file's name
    else:
        place = text
    if not 0 < value < float("inf"):
        raise UsageError(f"--source {text}: weight {value}; expected a number above 0")
    hub = place.startswith(HUB)
    place = place.removeprefix(HUB)
    if not place:
        raise UsageError(f"--source {text}: names nothing; expected PATH=WEIGHT or hub:REPO@SPLIT=WEIGHT")
    return Source(place, value, hub)


def read_source(source: Source, tokenizer: "PreTrainedTokenizerBase", characters: int) -> Iterator[Document]:
    """Documents in order. characters: read from a hub data set before its stream is left."""
    if source.hub:
        for text in _hub_rows(source.place, tokenizer, characters):
            yield Document(((text, ""),))
        return
    path = Path(source.place)
    for text in load_documents(path, tokenizer):
        yield Document(_passages(text) if path.suffix in PLAIN_SUFFIXES else ((text, ""),))


def _passages(text: str) -> tuple[tuple[str, str], ...]:
    """A plain file at its blank lines, or at its lines if it has no blank ones; joined they are the text."""
    parts = (_BLANK if _BLANK.search(text) else _LINE).split(text)
    return tuple(zip(parts[::2], [*parts[1::2], ""], strict=True))


def _hub_rows(place: str, tokenizer: "PreTrainedTokenizerBase", characters: int) -> Iterator[str]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"{HUB}{place}: needs the package `datasets`; run `pip install 'quantriage[hub]'`, or download "
            "the text and name its files"
        ) from error
    name, _, split = place.partition("@")
    repository, _, config = name.partition(":")
    try:
        rows = load_dataset(repository, config or None, split=split or "train", streaming=True)
        yield from _enough(place, rows, tokenizer, characters)
    except (OSError, ValueError) as error:  # datasets raises both for names, splits and the network
        raise DataError(
            f"{HUB}{place}: cannot be read ({error}); check its name, split and network"
        ) from error


def _enough(
    place: str, rows: Iterable[object], tokenizer: "PreTrainedTokenizerBase", characters: int
) -> Iterator[str]:
    read = 0
    for number, row in enumerate(rows, start=1):
        text = row_text(f"{HUB}{place}, row {number}", row, tokenizer)
        yield text
        read += len(text)
        if read >= characters:
            return
