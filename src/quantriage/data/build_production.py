"""What production sends, as windows with the prompts in them marked.

Prompts are shorter than windows and of all lengths, and there is no mask: they stand one after another, the
end-of-text token between, in the order of the file, so that a window holds several and each token knows
whose it is. Text that is no list of prompts has its windows for prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from quantriage.data.build_file import TOKEN_FILE, read_token_file
from quantriage.data.text import ROWS_SUFFIX, load_documents
from quantriage.data.token_set import TokenSet
from quantriage.data.windows import build_tokens, leading_tokens, thin, tokenise
from quantriage.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXCERPT = 160  # characters
LEAST_WINDOWS = 4  # half of them are held out, and one window has no interval


@dataclass(frozen=True)
class Production:
    """Windows, and for every token of them the number of its prompt (-1: none)."""

    tokens: TokenSet
    prompt: Tensor  # int64 [sequences, length]
    excerpts: tuple[str, ...]  # by prompt number

    def rows(self, keep: Sequence[int]) -> "Production":
        """Some of the windows."""
        index = torch.tensor(keep, dtype=torch.int64)
        return Production(
            TokenSet.of(self.tokens.tokens[index], self.tokens.source), self.prompt[index], self.excerpts
        )


def load_production(
    path: Path, tokenizer: "PreTrainedTokenizerBase", sequences: int, length: int
) -> Production:
    """At most `sequences` windows of `length` tokens. Raises DataError if fewer than LEAST_WINDOWS fill."""
    if path.suffix == ROWS_SUFFIX:
        return _from_prompts(path, load_documents(path, tokenizer), tokenizer, sequences, length)
    if path.suffix == TOKEN_FILE:
        fits = read_token_file(path)[0].sequences
    else:
        body = length - len(leading_tokens(tokenizer))
        text = thin("\n\n".join(load_documents(path, tokenizer)), sequences * body)
        fits = len(tokenise(tokenizer, text, enough=sequences * body)) // max(1, body)
    count = min(sequences, fits)
    _enough(path, count, length)
    tokens = build_tokens((path,), tokenizer, count, length, 0, "evaluation")
    return _of_windows(tokens, tokenizer)


def _of_windows(tokens: TokenSet, tokenizer: "PreTrainedTokenizerBase") -> Production:
    """Each window is its own prompt."""
    number = torch.arange(tokens.sequences).unsqueeze(1).expand(-1, tokens.length).contiguous()
    excerpts = tuple(_excerpt(str(tokenizer.decode(row[:64].tolist()))) for row in tokens.tokens)
    return Production(tokens, number, excerpts)


def _from_prompts(
    path: Path,
    prompts: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    sequences: int,
    length: int,
) -> Production:
    prefix = leading_tokens(tokenizer)
    body = length - len(prefix)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: list[int] = []
    owner: list[int] = []
    for number, text in enumerate(prompts):
        found = tokenise(tokenizer, text).tolist()
        ids += [*found, *end]
        owner += [number] * len(found) + [-1] * len(end)
        if len(ids) >= sequences * body:
            break
    count = min(sequences, len(ids) // max(1, body))
    _enough(path, count, length)
    head = np.tile(np.asarray(prefix, np.int64), (count, 1))
    windows = np.asarray(ids[: count * body], np.int64).reshape(count, body)
    owners = np.asarray(owner[: count * body], np.int64).reshape(count, body)
    tokens = TokenSet.of(torch.from_numpy(np.concatenate([head, windows], axis=1)), path.name)
    marked = torch.from_numpy(np.concatenate([np.full_like(head, -1), owners], axis=1))
    return Production(tokens, marked, tuple(_excerpt(text) for text in prompts))


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT else f"{line[:EXCERPT]}…"


def _enough(path: Path, count: int, length: int) -> None:
    if count < LEAST_WINDOWS:
        raise DataError(
            f"{path}: fills {count} windows of {length} tokens, {LEAST_WINDOWS} or more are needed; use a "
            "shorter --length, or give more prompts"
        )
