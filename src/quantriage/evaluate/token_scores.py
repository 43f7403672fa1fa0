"""Reference against candidate, position by position: KL, likelihoods, and which token each puts first.

Everything is float32 and in nats. KL is reference to candidate over the whole vocabulary, exact; sampling or
a top-k cut was rejected because the tail is where low-bit models go wrong.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenScores:
    """Arrays of one shape, one entry for each scored position.

    kl, nll, reference_nll: float32. agreement: bool, same top-1. reference_top, candidate_top: token ids.
    """

    kl: Tensor
    nll: Tensor
    reference_nll: Tensor
    agreement: Tensor
    reference_top: Tensor
    candidate_top: Tensor

    def reshape(self, *shape: int) -> "TokenScores":
        """The same scores in another shape."""
        return TokenScores(*(getattr(self, name).reshape(*shape) for name in _FIELDS))

    @staticmethod
    def cat(parts: "list[TokenScores]") -> "TokenScores":
        """Scores of consecutive positions."""
        return TokenScores(*(torch.cat([getattr(p, name) for p in parts]) for name in _FIELDS))


_FIELDS = ("kl", "nll", "reference_nll", "agreement", "reference_top", "candidate_top")


def _kl(log_reference: Tensor, log_candidate: Tensor) -> Tensor:
    difference = log_reference - log_candidate
    # Rounding can push a KL near zero below it by 1e-7; the quantity itself cannot be negative.
    return difference.mul_(log_reference.exp()).sum(dim=-1).clamp_min_(0.0)


def token_kl(reference: Tensor, candidate: Tensor) -> Tensor:
    """KL [n] of logits [n, vocab]. Peak memory: four arrays of the logits' size."""
    return _kl(torch.log_softmax(reference.float(), dim=-1), torch.log_softmax(candidate.float(), dim=-1))


def score_tokens(reference: Tensor, candidate: Tensor, targets: Tensor) -> TokenScores:
    """Scores of logits [n, vocab] for the tokens `targets` [n] that follow. Memory as `token_kl`."""
    log_reference = torch.log_softmax(reference.float(), dim=-1)
    log_candidate = torch.log_softmax(candidate.float(), dim=-1)
    index = targets.unsqueeze(1)
    reference_top, candidate_top = log_reference.argmax(dim=-1), log_candidate.argmax(dim=-1)
    return TokenScores(
        kl=_kl(log_reference, log_candidate),
        nll=-log_candidate.gather(1, index).squeeze(1),
        reference_nll=-log_reference.gather(1, index).squeeze(1),
        agreement=reference_top == candidate_top,
        reference_top=reference_top,
        candidate_top=candidate_top,
    )
