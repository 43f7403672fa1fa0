"""Second moments for embedding and head, taken from the same backward pass as those of the blocks.

A head is a product like any other: its Hessian is E[w h h^T] over the final states, w the squared gradient at
its output. An embedding multiplies nothing, but its error reaches the loss as g . de, g being the gradient at
the first boundary: E[g g^T] stands where a Hessian does and error feedback works as it does elsewhere. Both
are second derivatives of one loss in one unit, so for a tied table they add up. One matrix serves all rows: a
row's own (tokens that name it, positions where it is likely) rests on few tokens and was not tried.
"""

import torch
from torch import Tensor

from quantriage.model.capture import WeightCall
from quantriage.model.site import End
from quantriage.stream.hessian import HessianSum
from quantriage.stream.loss_hessians import FLOOR
from quantriage.stream.stream import OnHead


class EndHessians:
    """Sums over all batches for `ends`. Memory: two [width, width] in float32."""

    def __init__(self, ends: tuple[End, ...], device: torch.device) -> None:
        self._watches_head = any(end.projects for end in ends)
        self._width = ends[0].shape[1]
        self._head, self._embedding = HessianSum(self._width, device), HessianSum(self._width, device)

    @property
    def nbytes(self) -> int:
        """Memory of the sums."""
        return 2 * 4 * self._width**2

    @property
    def on_head(self) -> OnHead | None:
        """What is to be told of products with the head; None if no end is one."""
        return self._at_head if self._watches_head else None

    @torch.no_grad()
    def _at_head(self, call: WeightCall, gradient: Tensor) -> None:
        """Take one product with the head, and the gradient of the probe at its output, [n, vocabulary]."""
        squares = torch.linalg.vector_norm(gradient, dim=-1, dtype=torch.float32).square_().flatten()
        inputs = call.input.detach().reshape(-1, call.input.shape[-1])
        self._head.update(inputs.to(call.output.dtype), squares + FLOOR * squares.mean())

    @torch.no_grad()
    def at_embedding(self, gradient: Tensor) -> None:
        """Take the gradient of the probe at the first boundary, [b, t, width]."""
        self._embedding.update(gradient.reshape(-1, gradient.shape[-1]))

    def of(self, end: End) -> HessianSum:
        """The second moment that an end is rounded by."""
        total = HessianSum(end.shape[1], self._head.device)
        for wanted, part in ((end.projects, self._head), (end.embeds, self._embedding)):
            if wanted:
                total.merge(part)
        total.tokens = self._embedding.tokens  # of a tied table both sums saw the same
        return total
