"""A calibration set out of weighted sources: filtered, tokenised, packed into windows, mixed.

Two ways of packing. `packed` joins a source's documents with the tokenizer's end-of-text token and draws
windows at random over all ways to place them: every token has the same chance, and most windows begin in the
middle of something, as a long context does. `document` takes each window from inside one document, at random,
and drops documents that are shorter: no window then sees two conversations. Padding short documents was
rejected, since pads would be counted as inputs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from quantriage.data.build_file import vocabulary_digest
from quantriage.data.build_filters import PassageFilter
from quantriage.data.build_sources import Document, Source, read_source
from quantriage.data.token_set import TokenSet
from quantriage.data.windows import Ids, leading_tokens, random_starts, thin, tokenise
from quantriage.errors import DataError
from quantriage.records.calibration import CalibrationSet, Dropped, SourceShare
from quantriage.records.types import Finding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Packing = Literal["packed", "document"]
RECOMMENDED = (128, 2048)  # windows, tokens in each
_CHARACTERS = 64  # read from a hub data set for each token asked for
_EXAMPLE = 120  # characters


@dataclass(frozen=True)
class Request:
    """What is to be built. widest: inputs of the widest layer to be quantized."""

    sources: tuple[Source, ...]
    sequences: int
    length: int
    packing: Packing
    seed: int
    widest: int
    keep_all: bool = False  # no filters


@dataclass(frozen=True)
class _Gathered:
    """A source's windows [share, body] and how they came about."""

    windows: Ids
    share: SourceShare
    dropped: tuple[Dropped, ...]


def build_set(request: Request, tokenizer: "PreTrainedTokenizerBase") -> tuple[TokenSet, CalibrationSet]:
    """The windows and their manifest. The same request gives the same tokens. Raises DataError.

    Windows of the sources are dealt evenly, so that any first n of them are mixed as all are.
    """
    prefix = leading_tokens(tokenizer)
    body = request.length - len(prefix)
    if body < 2:
        raise DataError(f"windows of {request.length} tokens; ask for {len(prefix) + 2} or more")
    shares = apportion([source.weight for source in request.sources], request.sequences)
    judge = PassageFilter()
    gathered = [
        _gather(request, number, share, body, tokenizer, judge) for number, share in enumerate(shares)
    ]
    order = sorted(
        ((turn + 0.5) / share, number, turn) for number, share in enumerate(shares) for turn in range(share)
    )
    windows = np.stack([gathered[number].windows[turn] for _, number, turn in order])
    head = np.tile(np.asarray(prefix, np.int64), (request.sequences, 1))
    tokens = TokenSet.of(
        torch.from_numpy(np.concatenate([head, windows], axis=1)),
        " + ".join(source.name for source in request.sources),
    )
    manifest = CalibrationSet(
        tokens=tokens.identity("calibration"),
        tokenizer=vocabulary_digest(tokenizer),
        packing=request.packing,
        seed=request.seed,
        sources=tuple(part.share for part in gathered),
        dropped=tuple(dropped for part in gathered for dropped in part.dropped),
        tokens_per_input=request.sequences * request.length / request.widest,
        findings=_findings(request),
    )
    return tokens, manifest


def random_tokens(
    tokenizer: "PreTrainedTokenizerBase", rows: int, sequences: int, length: int, seed: int
) -> TokenSet:
    """Ids drawn uniformly from the ordinary vocabulary: what calibrating on nothing in particular is worth.

    rows: ids that the model embeds; special and added tokens are left out.
    """
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ordinary = sorted(i for i in tokenizer.get_vocab().values() if i < rows and i not in special)
    prefix = leading_tokens(tokenizer)
    draw = np.random.default_rng([seed, 7])
    body = draw.choice(np.asarray(ordinary, np.int64), size=(sequences, length - len(prefix)))
    head = np.tile(np.asarray(prefix, np.int64), (sequences, 1))
    return TokenSet.of(torch.from_numpy(np.concatenate([head, body], axis=1)), "random tokens")


def apportion(weights: Sequence[float], count: int) -> list[int]:
    """`count` windows by weights, by largest remainder; each source gets at least one. Raises DataError."""
    if count < len(weights):
        raise DataError(f"{count} windows from {len(weights)} sources; ask for {len(weights)} or more")
    total = sum(weights)
    exact = [weight * count / total for weight in weights]
    shares = [max(1, int(value)) for value in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (int(exact[i]) - exact[i], i))
    for i in by_remainder:
        if sum(shares) < count:
            shares[i] += 1
    while sum(shares) > count:  # a source of tiny weight took one that was not its own
        shares[max(range(len(shares)), key=lambda i: shares[i])] -= 1
    return shares


def _gather(
    request: Request,
    number: int,
    share: int,
    body: int,
    tokenizer: "PreTrainedTokenizerBase",
    judge: PassageFilter,
) -> _Gathered:
    source = request.sources[number]
    dropped: dict[str, list[str]] = {}
    texts: list[str] = []
    passages = 0
    for document in read_source(source, tokenizer, share * body * _CHARACTERS):
        passages += len(document.passages)
        texts.append(document_text(document, None if request.keep_all else judge, dropped))
    draw = np.random.default_rng([request.seed, number])
    if len(texts) == 1:  # a corpus in one file: stretches of it, so that not all of it is tokenised
        texts = [thin(texts[0], share * body)]
    ids = [tokenise(tokenizer, text) for text in texts if text.strip()]
    pack = _packed if request.packing == "packed" else _inside
    windows = pack(ids, share, body, draw, tokenizer)
    if len(windows) < share:
        raise _too_little(request, source, share, len(windows), sum(map(len, ids)), dropped)
    short = sum(len(i) < body for i in ids) if request.packing == "document" else 0
    return _Gathered(
        windows,
        SourceShare(
            source=source.name,
            weight=source.weight / sum(s.weight for s in request.sources),
            passages=passages,
            kept=passages - sum(map(len, dropped.values())),
            tokens=sum(map(len, ids)),
            windows=share,
            too_short=short,
        ),
        tuple(
            Dropped(
                source=source.name,
                reason=reason,
                passages=len(found),
                characters=sum(map(len, found)),
                example=" ".join(found[0].split())[:_EXAMPLE],
            )
            for reason, found in dropped.items()
        ),
    )


def document_text(document: Document, judge: PassageFilter | None, dropped: dict[str, list[str]]) -> str:
    """What is left of a document; what is not goes into `dropped` under its reason."""
    kept: list[str] = []
    for passage, separator in document.passages:
        reason = judge.reason(passage) if judge is not None else None
        if reason is None:
            kept += [passage, separator]
        else:
            dropped.setdefault(reason, []).append(passage)
    return "".join(kept)


def _packed(
    ids: Sequence[Ids],
    share: int,
    body: int,
    draw: np.random.Generator,
    tokenizer: "PreTrainedTokenizerBase",
) -> Ids:
    """Random windows over the documents in random order, the end-of-text token (if any) after each."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    after = np.asarray(end if len(ids) > 1 else [], np.int64)
    order = draw.permutation(len(ids))
    parts = [part for i in order for part in (ids[i], after)]
    stream = np.concatenate(parts) if parts else np.empty(0, np.int64)
    fits = min(share, len(stream) // body)
    starts = random_starts(len(stream), fits, body, draw)
    windows: Ids = stream[starts[:, None] + np.arange(body)]
    return windows


def _inside(
    ids: Sequence[Ids],
    share: int,
    body: int,
    draw: np.random.Generator,
    tokenizer: "PreTrainedTokenizerBase",  # noqa: ARG001
) -> Ids:
    """One window at random out of each of `share` documents that are long enough, chosen at random."""
    long = [document for document in ids if len(document) >= body]
    chosen = draw.permutation(len(long))[:share]
    starts = [int(draw.integers(len(long[i]) - body + 1)) for i in chosen]
    found = [long[i][start : start + body] for i, start in zip(chosen, starts, strict=True)]
    return np.stack(found) if found else np.empty((0, body), np.int64)


def _too_little(
    request: Request, source: Source, share: int, fits: int, tokens: int, dropped: dict[str, list[str]]
) -> DataError:
    lost = Counter({reason: len(found) for reason, found in dropped.items()})
    why = f", after {lost.total()} passages were dropped ({', '.join(lost)})" if lost else ""
    where = "documents of that length" if request.packing == "document" else "windows"
    return DataError(
        f"{source.place}: {tokens} tokens give {fits} {where} of {request.length}{why}, {share} are its share"
        "; give more text, a smaller weight, shorter windows, or pack documents together"
    )


def _findings(request: Request) -> tuple[Finding, ...]:
    """Warn of a set that is smaller than recommended, with the reason in this model's own figures."""
    tokens, (sequences, length) = request.sequences * request.length, RECOMMENDED
    if tokens >= sequences * length:
        return ()
    return (
        Finding(
            severity="warning",
            code="few-tokens",
            text=(
                f"{tokens:,} tokens are {tokens / request.widest:.1f} for each of the {request.widest:,} "
                f"inputs of the widest layer; {sequences} x {length} ({sequences * length:,}) are "
                "recommended: a second moment from few tokens has directions that were never seen, and "
                "rounding puts its error there; windows as long as what is served also show late positions"
            ),
        ),
    )
