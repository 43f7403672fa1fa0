"""From per-token scores to an `EvalResult`: what is quoted, its intervals, and where in the text it errs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quantriage.evaluate.intervals import mean_interval, perplexity_interval
from quantriage.evaluate.token_scores import TokenScores
from quantriage.records.types import EvalResult, SequenceScores, TokenLoss

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
_BINS = 16
_CONTEXT = 24  # tokens shown before a bad one
_WORST = 40
Kind = Literal["reference", "uniform", "first-and-last", "mix", "candidate"]
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Subject:
    """What was evaluated: its label, kind, size and place."""

    label: str
    kind: Kind
    bits_per_weight: float
    body_bytes: int
    file_bytes: int | None = None
    source: str = "in memory"
    digest: str = ""
    blocks_bits: float | None = None
    file_bits: float | None = None


def summarize(subject: Subject, scores: TokenScores, tokens: Tensor, decode: Decode) -> EvalResult:
    """Scores [sequences, length - 1] on tokens [sequences, length] as one record.

    `decode` turns token ids into text for the worst positions.
    """
    nll = scores.nll.double().mean(dim=1).tolist()
    kl = scores.kl.double().mean(dim=1).tolist()
    agreement = scores.agreement.double().mean(dim=1).tolist()
    flat = scores.kl.flatten().double()
    points = torch.quantile(flat, torch.tensor([p / 100 for p in PERCENTILES], dtype=torch.float64))
    percentiles = {f"{p:g}": float(v) for p, v in zip(PERCENTILES, points, strict=True)}
    return EvalResult(
        label=subject.label,
        kind=subject.kind,
        bits_per_weight=subject.bits_per_weight,
        body_bytes=subject.body_bytes,
        file_bytes=subject.file_bytes,
        blocks_bits_per_weight=subject.blocks_bits,
        file_bits_per_weight=subject.file_bits,
        tokens=flat.numel(),
        perplexity=perplexity_interval(nll),
        kl=mean_interval(kl),
        kl_percentiles={**percentiles, "max": float(flat.max())},
        top1_agreement=mean_interval(agreement),
        flips=1.0 - float(scores.agreement.double().mean()),
        sequences=SequenceScores(
            kl=tuple(kl),
            nll=tuple(nll),
            reference_nll=tuple(scores.reference_nll.double().mean(dim=1).tolist()),
            agreement=tuple(agreement),
        ),
        worst_tokens=_worst(scores, tokens, decode),
        kl_by_position=_by_position(scores.kl),
        source=subject.source,
        digest=subject.digest,
    )


def _by_position(kl: Tensor) -> tuple[float, ...]:
    """Mean KL in up to 16 bins along the window."""
    parts = kl.double().mean(dim=0).tensor_split(min(_BINS, kl.shape[1]))
    return tuple(float(part.mean()) for part in parts)


def _worst(scores: TokenScores, tokens: Tensor, decode: Decode) -> tuple[TokenLoss, ...]:
    values, places = scores.kl.flatten().topk(min(_WORST, scores.kl.numel()))
    found = []
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        sequence, position = divmod(place, scores.kl.shape[1])
        before = tokens[sequence, max(0, position + 1 - _CONTEXT) : position + 1].tolist()
        found.append(
            TokenLoss(
                sequence=sequence,
                position=position + 1,
                kl=value,
                before=decode(before),
                actual=decode([int(tokens[sequence, position + 1])]),
                reference_top=decode([int(scores.reference_top[sequence, position])]),
                candidate_top=decode([int(scores.candidate_top[sequence, position])]),
            )
        )
    return tuple(found)
