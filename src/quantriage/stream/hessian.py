"""Second moments of a site's input: H = sum over tokens of w_t * x_t x_t^T, the statistic of every rounding.

With w_t = 1 this is the Hessian of the layer's squared output error. With w_t the mean squared gradient of
the loss at the layer's output it approximates the Hessian of the *loss* (GuidedQuant, one weight per token):
tokens whose output the loss does not read stop competing with those it does.
"""

import torch
from torch import Tensor

_BLOCK = 512  # columns; blocks above the diagonal are not computed


class HessianSum:
    """Accumulates H [in, in] in float32. Only the lower triangle is kept up to date until `value`.

    Products run in float32 whatever the inputs' dtype. In bfloat16 they are twice as fast, but each batch's
    sum is rounded alike: on inputs with a large mean that left a matrix which is not positive definite.
    Sums merge (`merge`), so shards of the calibration set may be summed apart.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._sum = torch.zeros(width, width, device=device)
        self.tokens = 0

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """Add `inputs` [n, in] with token `weights` [n] >= 0. Peak memory: a float32 copy of the inputs."""
        rows = inputs.float()
        if weights is not None:
            rows = rows * weights.float().sqrt().unsqueeze(1)
        self.tokens += rows.shape[0]
        with torch.autocast(rows.device.type, enabled=False):
            for start in range(0, rows.shape[1], _BLOCK):
                columns = slice(start, start + _BLOCK)
                self._sum[start:, columns] += rows[:, start:].T @ rows[:, columns]

    def merge(self, other: "HessianSum") -> None:
        """Add another sum over other tokens."""
        self._sum += other._sum
        self.tokens += other.tokens

    def value(self) -> Tensor:
        """The symmetric H [in, in], scaled to a mean diagonal of 1 (its scale is arbitrary).

        Works in place: the sum cannot be updated afterwards. A site that saw nothing gives zeros.
        """
        total = self._sum
        for start in range(0, total.shape[0], _BLOCK):  # mirror without a second full copy
            stop = start + _BLOCK
            total[start:stop, stop:] = total[stop:, start:stop].T
            inner = total[start:stop, start:stop]
            inner.copy_(torch.tril(inner) + torch.tril(inner, -1).T)
        mean = total.diagonal().mean()
        if mean > 0:
            total /= mean
        return total
