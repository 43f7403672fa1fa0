"""Random gradients at the logits whose covariance is the Fisher matrix of the model's own predictions.

With labels drawn from the model, the gradient at the logits is p - onehot(label): covariance diag(p) - p p^T,
the true Fisher, but where the model is sure, rare large draws carry all of it. Random signs z give
sqrt(p) z - p (sqrt(p) . z), of that same covariance and of nearly the same size at every draw (figures in
docs/lab-log.md). The text's own tokens would give the empirical Fisher, which over-weighs surprising text.
"""

import torch
from torch import Tensor

_EIGHT_SIGNS = 1.0 - 2.0 * ((torch.arange(256).unsqueeze(1) >> torch.arange(8)) & 1)  # [byte, 8]


def random_signs(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Signs [rows, columns], float32, eight out of each random byte of a CPU generator."""
    octets = torch.randint(0, 256, (rows * -(-columns // 8),), generator=generator)
    return _EIGHT_SIGNS.index_select(0, octets).view(rows, -1)[:, :columns]


def fisher_probe(probabilities: Tensor, signs: Tensor) -> Tensor:
    """Rows [n, vocabulary] of mean 0 and covariance diag(p) - p p^T over random `signs` of that shape."""
    roots = probabilities.sqrt().mul_(signs)
    return roots.sub_(probabilities * roots.sum(dim=-1, keepdim=True))
