"""Second moments of a site's input: H = sum over tokens of w_t * x_t x_t^T, the statistic of every rounding.

With w_t = 1 this is the Hessian of the layer's squared output error. With w_t the mean squared gradient of
the loss at the layer's output it approximates the Hessian of the *loss* (GuidedQuant, one weight per token):
tokens whose output the loss does not read stop competing with those it does.
"""

from itertools import pairwise

import torch
from torch import Tensor

RUN = 1024  # rows of a site's outputs in one second moment
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

    def mean(self) -> float:
        """Mean of the diagonal of the sum."""
        return float(self._sum.diagonal().mean())

    @property
    def device(self) -> torch.device:
        """Where the sum is."""
        return self._sum.device

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


class OutputSum:
    """Second moment of the loss's gradients at a site's outputs, for consecutive runs of its rows.

    What couples the roundings of two rows (methods/row_coupling.py). Runs of `RUN` rows at most bound memory
    and work where a layer is wide; rows of different runs count as not coupled.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        count = -(-rows // RUN)
        bounds = [rows * place // count for place in range(count + 1)]
        self._runs = [slice(start, stop) for start, stop in pairwise(bounds)]
        self._sums = [HessianSum(run.stop - run.start, device) for run in self._runs]

    def update(self, gradients: Tensor) -> None:
        """Add gradients [n, out]."""
        for run, total in zip(self._runs, self._sums, strict=True):
            total.update(gradients[:, run])

    def values(self) -> tuple[Tensor, ...]:
        """[n, n] for each run, all in one unit. Works in place, as `HessianSum.value` does."""
        scales = [total.mean() for total in self._sums]
        most = max(scales)
        return tuple(
            total.value().mul_(scale / most if most > 0 else 1.0)
            for total, scale in zip(self._sums, scales, strict=True)
        )

    @staticmethod
    def bytes_of(rows: int) -> int:
        """Memory of a sum for that many rows, at most."""
        return 4 * rows * min(rows, RUN)
