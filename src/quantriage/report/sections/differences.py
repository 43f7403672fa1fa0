"""Two configurations side by side: what the candidate's settings are that the reference's are not.

Settings that change what the model computes stand first. Of a long value (a chat template) the table shows
where the two part and come together again, since thirty equal lines hide one changed word.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from quantriage.records.diagnosis import ConfigDifference
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.wording import clip, listed, plural

_WHOLE = 40  # characters of a value that need no cutting
_AROUND = 24  # equal characters kept on each side of the difference
_CHANGED = 240
_ROWS = 200


@dataclass(frozen=True)
class Value:
    """A value cut into what is equal before, what differs, and what is equal after."""

    before: str
    changed: str
    after: str


@dataclass(frozen=True)
class DifferenceRow:
    """One setting in both configurations."""

    file: str
    key: str
    reference: Value
    candidate: Value
    matters: bool


@dataclass(frozen=True)
class DifferencesContent:
    """The table, and how many lines of it are only in the record."""

    rows: tuple[DifferenceRow, ...]
    beyond: int


def build(records: RunRecords) -> Section | None:
    """From the lint's differences; left out if there are none."""
    found = records.lint.differences if records.lint else ()
    if not found:
        return None
    ranked = sorted(found, key=lambda d: not d.matters)
    rows = tuple(_row(difference) for difference in ranked[:_ROWS])
    content = DifferencesContent(rows, max(0, len(ranked) - _ROWS))
    return Section("differences", "Configurations", _lead(found), content)


def _lead(found: Iterable[ConfigDifference]) -> str:
    every = list(found)
    keys = [difference.key for difference in every if difference.matters]
    settings = f"{plural(len(every), 'setting')} {'differs' if len(every) == 1 else 'differ'}"
    if not keys:
        return f"{settings}, and none of them changes what the model computes."
    verb = "changes" if len(keys) == 1 else "change"
    who = "it" if len(every) == 1 else f"{len(keys):,} of them"
    return f"{settings}; {who} {verb} what the model computes: {clip(listed(keys), 200)}."


def _row(found: ConfigDifference) -> DifferenceRow:
    reference, candidate = parted(found.reference, found.candidate)
    return DifferenceRow(found.file, found.key, reference, candidate, found.matters)


def parted(reference: str, candidate: str) -> tuple[Value, Value]:
    """Both values around their difference; short ones whole, for then the marking tells nothing more."""
    if max(len(reference), len(candidate)) <= _WHOLE:
        return Value("", reference, ""), Value("", candidate, "")
    head = _common(reference, candidate)
    room = min(len(reference), len(candidate)) - head
    tail = min(room, _common(reference[::-1], candidate[::-1]))
    return _cut(reference, head, tail), _cut(candidate, head, tail)


def _common(first: str, second: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _cut(text: str, head: int, tail: int) -> Value:
    end = len(text) - tail
    before, after = text[:head], text[end:]
    if len(before) > _AROUND:
        before = f"…{before[-_AROUND:]}"
    return Value(before, clip(text[head:end], _CHANGED), clip(after, _AROUND))
