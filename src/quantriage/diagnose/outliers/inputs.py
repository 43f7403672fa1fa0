"""What the sums over one input say: channels that are far larger than others, and massive tokens.

Two different faults look alike in a maximum. A channel that stands out at most tokens is a property of the
weights before it and can be scaled away; a value that only the first token or a delimiter has is not in any
channel's scale. Persistence tells them apart (LLM.int8, Dettmers 2022; massive activations, Sun 2024).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.diagnose.outliers.input_sums import UNKNOWN, InputSum
from quantriage.records.outliers import (
    MASSIVE,
    PERSISTENT,
    STANDS_OUT,
    InputOutliers,
    MassiveToken,
    OutlierChannel,
    Place,
)

_NAMED = 8  # channels and tokens that a record names


@dataclass(frozen=True)
class Where:
    """What an input is called and who reads it."""

    name: str
    kind: Place
    sites: tuple[str, ...]
    block: int
    module: str


@dataclass(frozen=True)
class TokenNames:
    """Text of the tokens, by index in the flattened set, and which of them delimit."""

    length: int
    text: Callable[[int], str]
    delimits: Callable[[int], bool]


def look_at_input(where: Where, sums: InputSum, names: TokenNames) -> InputOutliers:
    """The record of one input that saw at least one token."""
    mean = sums.mean_magnitude
    maximum = float(sums.channel_maximum.max())
    of_channels = sums.channel_maximum.to(torch.float64)
    ratios = of_channels / of_channels.mean() if maximum > 0 else torch.zeros_like(of_channels)
    persistence = sums.channel_stands_out.to(torch.float64) / sums.tokens
    beyond, persistent = ratios > STANDS_OUT, persistence >= PERSISTENT
    named = {*_largest(ratios, beyond), *_largest(ratios, persistent)}
    ratio = maximum / mean if mean > 0 else 0.0
    massive = _massive(sums, names)
    kinds = [token.kind for token in massive]
    return InputOutliers(
        name=where.name,
        kind=where.kind,
        sites=where.sites,
        block=where.block,
        module=where.module,
        width=sums.width,
        tokens=sums.tokens,
        mean=sums.moments.mean,
        std=sums.moments.std,
        mean_magnitude=mean,
        maximum=maximum,
        ratio=ratio,
        typical_ratio=sums.typical_ratio(),
        channels_beyond=int(beyond.sum()),
        channels_persistent=int(persistent.sum()),
        channels=tuple(
            OutlierChannel(
                index=i,
                maximum=float(of_channels[i]),
                ratio=float(ratios[i]),
                persistence=float(persistence[i]),
            )
            for i in sorted(named, key=lambda i: (-float(ratios[i]), i))
        ),
        massive=len(massive),
        massive_first=kinds.count("first token"),
        massive_delimiters=kinds.count("delimiter"),
        massive_tokens=tuple(massive[:_NAMED]),
        alert=ratio >= MASSIVE,
    )


def _largest(ratios: Tensor, among: Tensor) -> list[int]:
    """The channels among those marked with the largest ratios."""
    marked: list[int] = among.nonzero().flatten().tolist()
    return sorted(marked, key=lambda i: -float(ratios[i]))[:_NAMED]


def _massive(sums: InputSum, names: TokenNames) -> list[MassiveToken]:
    """Tokens with a magnitude of 100 times the mean or more, largest first."""
    mean, peaks = sums.mean_magnitude, sums.peaks()
    if not mean > 0:
        return []
    found = (peaks >= MASSIVE * mean).nonzero().flatten()
    found = found[peaks[found].argsort(descending=True, stable=True)]
    channels, places = sums.peak_channels(), sums.places()
    return [_token(int(places[i]), int(channels[i]), float(peaks[i]), mean, names) for i in found.tolist()]


def _token(place: int, channel: int, value: float, mean: float, names: TokenNames) -> MassiveToken:
    if place == UNKNOWN:
        return MassiveToken(
            sequence=-1,
            position=-1,
            token="",
            kind="other",
            channel=channel,
            value=value,
            ratio=value / mean,
        )
    sequence, position = divmod(place, names.length)
    return MassiveToken(
        sequence=sequence,
        position=position,
        token=names.text(place),
        kind="first token" if position == 0 else "delimiter" if names.delimits(place) else "other",
        channel=channel,
        value=value,
        ratio=value / mean,
    )
