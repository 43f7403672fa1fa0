"""Passages that calibrate on nothing new: duplicates, near duplicates, and text that repeats itself.

One pass in reading order. A passage goes if most of its runs of words already stand in passages that were
kept: that finds the copy with another headline as well as the exact one, and needs no comparison in pairs.
MinHash (datasketch) was rejected as a dependency: it estimates the overlap of *pairs*, where here the
question is whether a passage adds anything to all that is kept, which a set of hashes answers exactly.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

_WORDS = re.compile(r"\w+")
RUN = 8  # words
MOST_SEEN = 0.7  # of a passage's runs of words; above it nothing new is left
LEAST_WORDS = 20  # shorter passages are judged by exact equality alone, and only from _SHORT words on
_SHORT = 6
# The most common n-gram's share of all characters, and of lines that occur twice: Rae et al. 2021, table A1.
_MOST_COMMON = {2: 0.20, 3: 0.18, 4: 0.16}
_MOST_LINES = 0.30
_MOST_DAMAGED = 0.01

EXACT, NEAR = "exact duplicate", "near duplicate"
WORDS, LINES, DAMAGED = "repeated words", "repeated lines", "damaged characters"


class PassageFilter:
    """Judges passages one after another. Memory: about 70 bytes for each word that was kept."""

    def __init__(self) -> None:
        self._runs: set[int] = set()
        self._exact: set[bytes] = set()

    def reason(self, passage: str) -> str | None:
        """Why the passage should go; None if it stays, and it is then remembered."""
        words = _WORDS.findall(passage.casefold())
        if _damaged(passage):
            return DAMAGED
        if len(words) < _SHORT:  # a brace, a heading: repeats by nature
            return None
        digest = hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()
        if digest in self._exact:
            return EXACT
        if len(words) >= LEAST_WORDS:
            if (found := degenerate(passage, words)) is not None:
                return found
            runs = _run_hashes(words)
            if sum(run in self._runs for run in runs) > MOST_SEEN * len(runs):
                return NEAR
            self._runs.update(runs)
        self._exact.add(digest)
        return None


def degenerate(passage: str, words: Sequence[str]) -> str | None:
    """Whether a passage repeats its own words or lines; `words` are the passage's."""
    total = sum(map(len, words))
    for size, most in _MOST_COMMON.items():
        grams = Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
        gram, count = grams.most_common(1)[0]
        if count > 2 and count * sum(map(len, gram)) > most * total:
            return WORDS
    lines = [line.strip() for line in passage.split("\n") if len(_WORDS.findall(line)) >= 3]
    if len(lines) >= 4 and (len(lines) - len(set(lines))) > _MOST_LINES * len(lines):
        return LINES
    return None


def _damaged(passage: str) -> bool:
    """Replacement and control characters: text decoded with the wrong table, or no text."""
    bad = sum(c == "\ufffd" or (c < " " and c not in "\n\t\f") for c in passage)
    return bad > _MOST_DAMAGED * len(passage)


def _run_hashes(words: Sequence[str]) -> list[int]:
    return [_hash(words[i : i + RUN]) for i in range(len(words) - RUN + 1)]


def _hash(words: Sequence[str]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest(), "little")
