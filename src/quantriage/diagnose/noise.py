"""The same-norm control: what random errors of a weight's size would cost.

An error that costs what random errors of its size cost can only be made smaller; one that costs far more has
a structure that a better rounding, or a repair, would remove. Random here is a Gaussian matrix of independent
entries with the norm of each row of the error. Its expected Fisher scores have a closed form, which costs
less than one drawn matrix and has no noise of its own: drawing a few matrices was rejected, for inputs with
one outlying channel leave a draw with few degrees of freedom.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowNoise:
    """Independent Gaussian entries; `variance` [out] is that of one entry in each row."""

    variance: Tensor

    @staticmethod
    def like(error: Tensor) -> "RowNoise":
        """Noise with the norm of each row of `error` [out, in]."""
        return RowNoise(error.float().square().mean(dim=1))


def expected_squares(
    noise: RowNoise, inputs: Tensor, gradients: Tensor, sequences: int
) -> tuple[Tensor, Tensor]:
    """Means of (g . N x)^2 over noise N: for each token, and for each sequence's sum over its positions.

    inputs [n, in], gradients [n, out], n a multiple of `sequences`; returns [n] and [sequences], float64.
    E[(g_s . N x_s) (g_t . N x_t)] = (x_s . x_t) sum_i variance_i g_si g_ti. Memory: two [t, t] of a sequence.
    """
    scaled = gradients.float() * noise.variance.to(gradients.device)
    if sequences == len(inputs):  # an expert's tokens, each for itself
        alone = inputs.float().square().sum(dim=1).double() * (scaled * gradients).sum(dim=1).double()
        return alone, alone
    tokens, sums = [], []
    length = len(inputs) // sequences
    for rows in torch.arange(len(inputs), device=inputs.device).split(length):
        x, g = inputs[rows].float(), gradients[rows].float()
        products = (x @ x.T).double().mul_((scaled[rows] @ g.T).double())
        tokens.append(products.diagonal().clone())
        sums.append(products.sum().clamp_min(0.0))
    return torch.cat(tokens), torch.stack(sums)
