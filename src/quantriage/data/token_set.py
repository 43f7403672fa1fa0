"""Token sequences of one length with their provenance: what calibration and evaluation run on.

All sequences have the same length and there is no mask, so every position of every window counts and any
two evaluations of one set are comparable position by position; padded batches were rejected for that. The
digest is of the tokens alone, so the same windows have one identity wherever the text lay.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quantriage.errors import DataError
from quantriage.records.digest import bytes_digest
from quantriage.records.types import DataIdentity

Role = Literal["calibration", "selection", "evaluation"]


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Token ids, where they came from, and the sha256 of shape and ids. Build it with `TokenSet.of`."""

    tokens: Tensor  # int64 [sequences, length]
    source: str
    digest: str

    @staticmethod
    def of(tokens: Tensor, source: str) -> "TokenSet":
        """Tokens [sequences, length] with their digest."""
        if tokens.ndim != 2 or tokens.dtype != torch.int64:
            raise DataError(
                f"{source}: tokens of {tokens.dtype} {tuple(tokens.shape)}; expected int64 [rows, length]"
            )
        tokens = tokens.contiguous().cpu()
        shape = f"{tokens.shape[0]}x{tokens.shape[1]}:".encode()
        return TokenSet(tokens, source, bytes_digest(shape + tokens.numpy().astype("<i8").tobytes()))

    @property
    def sequences(self) -> int:
        """Number of windows."""
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        """Tokens in each window."""
        return self.tokens.shape[1]

    def take(self, count: int) -> "TokenSet":
        """The first `count` sequences. Raises DataError if there are fewer."""
        return self.split(count)[0]

    def split(self, first: int) -> tuple["TokenSet", "TokenSet"]:
        """The first `first` sequences and the rest (which may be none), disjoint. Raises DataError."""
        if not 0 < first <= self.sequences:
            raise DataError(
                f"{self.source}: {first} sequences asked for, {self.sequences} are there; "
                f"ask for 1 to {self.sequences}"
            )
        return TokenSet.of(self.tokens[:first], self.source), TokenSet.of(self.tokens[first:], self.source)

    def identity(self, role: Role) -> DataIdentity:
        """The record of which tokens these are."""
        return DataIdentity(
            role=role,
            source=self.source,
            sequences=self.sequences,
            length=self.length,
            digest=self.digest,
        )
