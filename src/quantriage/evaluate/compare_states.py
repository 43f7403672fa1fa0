"""Turn final hidden states of two models into token scores, a few rows of logits at a time."""

from contextlib import ExitStack

import torch
from torch import Tensor

from quantriage.data.token_set import TokenSet
from quantriage.evaluate.token_scores import TokenScores, score_tokens
from quantriage.model.causal import CausalModel
from quantriage.stream.compute import Compute

_LOGITS = 1 << 25  # logits of one model at once: 128 MB of float32


@torch.no_grad()
def compare_states(
    reference: CausalModel,
    reference_states: Tensor,
    candidate: CausalModel,
    candidate_states: Tensor,
    tokens: TokenSet,
    compute: Compute,
) -> TokenScores:
    """Scores [sequences, length - 1]; states are [sequences, length, width] after the last block.

    Each model's own final norm and head are used: an export's may be stored in another dtype. Memory: both
    heads and about six arrays of _LOGITS.
    """
    rows = max(1, _LOGITS // reference.vocab_size)
    length = tokens.length
    parts: list[TokenScores] = []
    with ExitStack() as stack:
        stack.enter_context(reference.head())
        if candidate is not reference:
            stack.enter_context(candidate.head())
        for sequence in range(tokens.sequences):
            targets = tokens.tokens[sequence, 1:].to(compute.device)
            for start in range(0, length - 1, rows):
                stop = min(length - 1, start + rows)
                with compute.autocast():
                    left = reference.logits(reference_states[sequence, start:stop].to(compute.device))
                    right = candidate.logits(candidate_states[sequence, start:stop].to(compute.device))
                parts.append(score_tokens(left, right, targets[start:stop]))
    return TokenScores.cat(parts).reshape(tokens.sequences, length - 1)
