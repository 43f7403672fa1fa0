"""Windows of equal length cut from text: spread at random for calibration, consecutive for evaluation.

Calibration wants to see much of the text, so its windows are drawn uniformly from all ways to place them
without overlap. Evaluation wants to be what everyone else measures, so it takes the text from its start.
Several files give equal shares, dealt in turn, so that any first n windows are balanced too; joining the
files was rejected, since then the longest one is most of the calibration.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from quantriage.data.build_file import TOKEN_FILE, read_windows
from quantriage.data.text import load_text
from quantriage.data.token_set import Role, TokenSet
from quantriage.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = NDArray[np.int64]

_PIECE = 1 << 16  # characters tokenised in one call
_CUT = re.compile(r"(?<=\w) (?=\w)|(?<=\S)\n(?=\S)")
# Random windows are spread over this much of a long text, so that a corpus of gigabytes is not tokenised.
_SPREAD = 64  # characters for each token asked for
_LEAST_SPREAD = 4_000_000  # characters; a text of this size is always used whole


def build_tokens(
    paths: Sequence[Path],
    tokenizer: "PreTrainedTokenizerBase",
    sequences: int,
    length: int,
    seed: int,
    role: Role,
) -> TokenSet:
    """Windows from `paths` in equal shares, in turn; random for calibration and selection, else consecutive.

    Each window of `length` tokens starts with the special tokens that the tokenizer puts before a text by
    default (a BOS, or nothing). The same arguments give the same tokens. Raises DataError if a text is too
    short.

    A token file that `calibration build` wrote takes the place of text: its first windows, cut at `length`.
    """
    if any(path.suffix == TOKEN_FILE for path in paths):
        return read_windows(paths, tokenizer, sequences, length)
    prefix = leading_tokens(tokenizer)
    body = length - len(prefix)
    _check_request(len(paths), sequences, length, len(prefix), role)
    shares = [sequences // len(paths) + (i < sequences % len(paths)) for i in range(len(paths))]
    per_file = []
    for number, (path, share) in enumerate(zip(paths, shares, strict=True)):
        text = load_text(path, tokenizer)
        if role == "evaluation":
            ids = tokenise(tokenizer, text, enough=share * body)
            starts = np.arange(share, dtype=np.int64) * body
        else:
            ids = tokenise(tokenizer, thin(text, share * body))
            starts = random_starts(len(ids), share, body, np.random.default_rng([seed, number]))
        if len(ids) < share * body:
            raise _too_short(path, len(ids), share, body, length)
        per_file.append(ids[starts[:, None] + np.arange(body)])  # [share, body]
    order = sorted((turn, number) for number, share in enumerate(shares) for turn in range(share))
    windows = np.stack([per_file[number][turn] for turn, number in order])  # [sequences, body]
    head = np.tile(np.asarray(prefix, dtype=np.int64), (sequences, 1))
    tokens = torch.from_numpy(np.concatenate([head, windows], axis=1))
    return TokenSet.of(tokens, " + ".join(path.name for path in paths))


def leading_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """The special tokens that `tokenizer` puts before a text by default, found by asking it."""
    text = "a"
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    full = tokenizer(text)["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(full[:start])
    return ()


def check_vocabulary(tokenizer: "PreTrainedTokenizerBase", rows: int, used: Sequence[TokenSet] = ()) -> None:
    """Refuse a tokenizer that does not belong to a model with `rows` embedding rows. Raises DataError.

    Added tokens beyond the rows are let pass unless `used` holds them: real models ship such (an image token
    in a text-only Gemma), and they are harmless while no text contains them.
    """
    added = set(tokenizer.get_added_vocab().values())
    largest = max((i for i in tokenizer.get_vocab().values() if i not in added), default=-1)
    if largest >= rows:
        raise DataError(
            f"tokenizer with ids up to {largest}, but the model embeds {rows}: it belongs to another model; "
            "use the tokenizer files of this checkpoint"
        )
    for tokens in used:
        highest = int(tokens.tokens.max()) if tokens.tokens.numel() else -1
        if highest >= rows:
            raise DataError(
                f"{tokens.source}: holds token id {highest} ({tokenizer.convert_ids_to_tokens(highest)!r}), "
                f"but the model embeds {rows}; remove that token from the text or use this checkpoint's "
                "tokenizer"
            )


def tokenise(tokenizer: "PreTrainedTokenizerBase", text: str, enough: int | None = None) -> Ids:
    """Ids of `text` without special tokens, at least `enough` of them if the text has so many.

    The text is cut into pieces, so that time is spent on no more than needed and a long
    text is not one call of its own memory; the cuts do not depend on `enough`.
    """
    found: list[Ids] = []
    count = 0
    for piece in _pieces(text):
        encoded = tokenizer(piece, add_special_tokens=False, return_attention_mask=False, verbose=False)
        found.append(np.asarray(encoded["input_ids"], dtype=np.int64))
        count += len(found[-1])
        if enough is not None and count >= enough:
            break
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _pieces(text: str) -> list[str]:
    """`text` in pieces of about _PIECE characters, cut where no tokenizer joins across.

    That is before a single space between words, or after a single line feed between lines: byte-pair
    vocabularies keep a space with the word after it, and split or merge runs of whitespace by what follows.
    """
    pieces = []
    start = 0
    while start < len(text):
        cut = _CUT.search(text, start + _PIECE)
        end = len(text) if cut is None else cut.start() + (cut.group() == "\n")
        pieces.append(text[start:end])
        start = end
    return pieces


def thin(text: str, tokens: int) -> str:
    """`text`, or evenly spaced stretches of it if it is far longer than `tokens` need."""
    most = max(_LEAST_SPREAD, tokens * _SPREAD)
    pieces = _pieces(text) if len(text) > most else [text]
    total = len(pieces)
    keep = min(total, max(1, most // _PIECE))
    return "".join(pieces[i * total // keep] for i in range(keep))


def random_starts(count: int, windows: int, width: int, generator: np.random.Generator) -> Ids:
    """Starts of `windows` windows that do not overlap, uniform over all placements, in random order.

    Choosing sorted gaps with repetition and adding i * width is a bijection with the placements when the
    gaps are drawn as a set of `windows` out of free + windows (stars and bars).
    """
    free = count - windows * width
    if free < 0:
        return np.empty(0, np.int64)
    bars = np.sort(generator.choice(free + windows, size=windows, replace=False))
    ordinal = np.arange(windows)
    starts: Ids = (bars - ordinal + ordinal * width).astype(np.int64)
    return generator.permutation(starts)


def _check_request(files: int, sequences: int, length: int, leading: int, role: Role) -> None:
    """Refuse what no text could satisfy."""
    if files == 0:
        raise DataError(f"no {role} text given; name at least one file")
    if sequences < files:
        raise DataError(
            f"{sequences} windows from {files} files: each file gives at least one window; "
            f"ask for {files} windows or more"
        )
    if length < leading + 2:
        raise DataError(
            f"windows of {length} tokens, of which the tokenizer itself puts {leading} first; "
            f"ask for {leading + 2} or more"
        )


def _too_short(path: Path, found: int, share: int, body: int, length: int) -> DataError:
    """What was found, what was needed, and the choices."""
    fits = found // body
    advice = f"ask for at most {fits} windows of it, " if fits else ""
    return DataError(
        f"{path}: {found} tokens found, {share * body} needed for its share of {share} windows of "
        f"{length} tokens; {advice}use shorter windows, or give more text"
    )
