"""How an engine's log-probabilities differ from ours on the same tokens, in pairs.

The mean absolute difference is the measure that decides: a fault that moves probabilities both ways leaves
the mean, and so the perplexity, where it was. For small changes KL is half their variance, so that the
figure can be laid beside the change that the weights make.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.errors import EngineError
from quantriage.evaluate.engines.protocol import LEAST_LOGPROB
from quantriage.evaluate.intervals import mean_interval
from quantriage.records.types import Interval


@dataclass(frozen=True)
class Difference:
    """Of log-probabilities, in nats per token, with intervals over sequences.

    mean_absolute: of |theirs - ours|. nll_shift: of -theirs minus -ours. largest: of one token.
    """

    mean_absolute: Interval
    nll_shift: Interval
    largest: float
    tokens: int


def difference(ours: Tensor, theirs: Tensor) -> Difference:
    """Compare log-probabilities [sequences, length - 1]; NaN in `theirs` where nothing was asked."""
    if ours.shape != theirs.shape:
        raise EngineError(
            f"log-probabilities of shape {tuple(theirs.shape)}, expected {tuple(ours.shape)}: one for each "
            "token but a sequence's first"
        )
    asked = ~torch.isnan(theirs)
    change = torch.where(asked, theirs.double() - ours.double().clamp(min=LEAST_LOGPROB), 0.0)
    counts = asked.sum(dim=1)
    used = counts > 0
    if not bool(used.any()):
        raise EngineError("no log-probability came back; expected one for each token asked for")
    absolute = change.abs().sum(dim=1)[used] / counts[used]
    shift = -change.sum(dim=1)[used] / counts[used]
    return Difference(
        mean_interval(absolute.tolist()),
        mean_interval(shift.tolist()),
        float(change.abs().max()),
        int(counts.sum()),
    )
