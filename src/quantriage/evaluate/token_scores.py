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


_CHUNK = 1 << 20  # logits of one model worked on at once: four arrays of 4 MB stay near the cache
_FAR = 40.0  # log ratio beyond which expm1 would overflow and the plain formula is exact enough


def token_kl(reference: Tensor, candidate: Tensor) -> Tensor:
    """KL [n] of logits [n, vocab]. Peak memory beside the arguments: four arrays of _CHUNK."""
    parts = [_kl(_log_softmax(reference[rows]), _log_softmax(candidate[rows])) for rows in _chunks(reference)]
    return torch.cat(parts)


def score_tokens(reference: Tensor, candidate: Tensor, targets: Tensor) -> TokenScores:
    """Scores of logits [n, vocab] for the tokens `targets` [n] that follow. Memory as `token_kl`."""
    chunks = _chunks(reference)
    return TokenScores.cat([_score(reference[rows], candidate[rows], targets[rows]) for rows in chunks])


def _score(reference: Tensor, candidate: Tensor, targets: Tensor) -> TokenScores:
    log_reference, log_candidate = _log_softmax(reference), _log_softmax(candidate)
    index = targets.unsqueeze(1)
    reference_top, candidate_top = _argmax(log_reference), _argmax(log_candidate)
    nll = -log_candidate.gather(1, index).squeeze(1)
    reference_nll = -log_reference.gather(1, index).squeeze(1)
    return TokenScores(
        kl=_kl(log_reference, log_candidate),  # last: it works in place
        nll=nll,
        reference_nll=reference_nll,
        agreement=reference_top == candidate_top,
        reference_top=reference_top,
        candidate_top=candidate_top,
    )


def _kl(log_reference: Tensor, log_candidate: Tensor) -> Tensor:
    """KL [n] of log-probabilities [n, vocab], both of which it overwrites.

    sum p * (exp(t) - 1 - t) with t = log(q / p), equal to -sum p * t since both sum to one. No term is
    negative, and an error of the normalisers enters squared; the plain sum is off by 1e-7, more than the
    noise floor of float32. Rows with a far larger q somewhere take the plain sum, in float64.
    """
    ratio = log_candidate.sub_(log_reference)
    far = ratio.amax(dim=-1) > _FAR
    plain = -(log_reference[far].double().exp() * ratio[far].double()).sum(dim=-1)
    terms = torch.expm1(ratio).sub_(ratio).clamp_min_(0.0)
    kl = terms.mul_(log_reference.exp_()).sum(dim=-1)
    kl[far] = plain.clamp_min(0.0).float()
    return kl


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1, dtype=torch.float32)


def _argmax(values: Tensor) -> Tensor:
    """Index of the largest of each row; numpy's is four times faster than torch's on a CPU."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy().argmax(axis=-1))
    return values.argmax(dim=-1)


def _chunks(logits: Tensor) -> list[slice]:
    """Ranges of rows; one empty range if there are none."""
    count, vocabulary = logits.shape
    rows = max(1, _CHUNK // vocabulary)
    return [slice(start, start + rows) for start in range(0, max(1, count), rows)]
