"""Hessians of every site of a block, weighted by what the loss reads.

One backward visit of a block gives both halves: the inputs x_t are recomputed from the boundary states and
the gradients g_t at each product's output arrive from above. Token weights are the mean squared gradient over
the outputs of all sites that share an input, so that q, k and v (and gate, up) share one Hessian, one
factorization and one column order. One Hessian for each site instead lowered the KL by 1.5% on SmolLM2 for
30% more work; Hessians from inputs that passed through the quantized blocks needed a third forward pass and
serialised the blocks (figures in docs/lab-log.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.model.capture import WeightCall
from quantriage.model.site import Site
from quantriage.stream.hessian import HessianSum, OutputSum
from quantriage.stream.site_products import InputKey, SiteProducts, input_key, output_rows
from quantriage.stream.stream import BlockGradients

FLOOR = 0.5
"""Share of the mean weight that every token keeps; without it KL is higher (ablation in docs/lab-log.md)."""


def token_weights(squares: Tensor) -> Tensor:
    """Weights [n] with mean 1 + FLOOR from summed squared gradients [n] of one batch."""
    mean = squares.mean()
    if not mean > 0:
        return torch.ones_like(squares)
    return squares / mean + FLOOR


@dataclass(frozen=True)
class BlockSums:
    """Of one block: the Hessian of every input, and of every site, by name, the gradients at its outputs.

    outputs: empty where they were not asked for.
    """

    inputs: dict[InputKey, HessianSum]
    outputs: dict[str, OutputSum]

    @staticmethod
    def zeros(sites: Iterable[Site], device: torch.device, outputs: bool) -> "BlockSums":
        """Of nothing yet."""
        sites = tuple(sites)
        return BlockSums(
            {input_key(site): HessianSum(site.shape[1], device) for site in sites},
            {site.name: OutputSum(site.shape[0], device) for site in sites if outputs},
        )


class LossHessians:
    """Sums for every input of a block. Memory: one [in, in] for each distinct input.

    outputs: also the second moment of the gradients at every site's outputs, 4 kB at most for each row.
    """

    def __init__(
        self, sites: tuple[Site, ...], device: torch.device, weighted: bool = True, outputs: bool = False
    ) -> None:
        self._products = SiteProducts(sites)
        self._weighted = weighted
        self._pending: dict[InputKey, tuple[Tensor, Tensor]] = {}  # inputs [n, in], squared gradients [n]
        self._batch = -1
        self._sums = BlockSums.zeros(sites, device, outputs)

    @torch.no_grad()
    def on_gradient(self, start: int, call: WeightCall, gradient: Tensor) -> None:
        """Take one product of the batch that begins at sequence `start`; batches come one after the other."""
        if start != self._batch:
            self.flush()
            self._batch = start
        for site in self._products.of(call):
            key = input_key(site)
            rows = output_rows(site, gradient)
            if self._sums.outputs:
                self._sums.outputs[site.name].update(rows)
            own = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).square_()
            if key in self._pending:
                inputs, squares = self._pending[key]
                self._pending[key] = (inputs, squares + own)
            else:
                inputs = call.input.detach().reshape(-1, call.input.shape[-1])
                self._pending[key] = (inputs.to(call.output.dtype), own)  # what the product multiplied

    @torch.no_grad()
    def flush(self) -> None:
        """Add what the current batch has brought; otherwise the next batch's first product does."""
        for key, (inputs, squares) in self._pending.items():
            self._sums.inputs[key].update(inputs, token_weights(squares) if self._weighted else None)
        self._pending.clear()

    def finish(self) -> BlockSums:
        """The sums over all batches; an expert that no token reached has zeros."""
        self.flush()
        return self._sums


def loss_hessians(
    gradients: BlockGradients, sites: tuple[Site, ...], weighted: bool = True, outputs: bool = False
) -> BlockSums:
    """Sums for every input of the block, over all batches.

    Also carries the gradient to the boundary before the block, as every backward visit does.
    """
    sums = LossHessians(sites, gradients.stream.compute.device, weighted, outputs)
    gradients.run(sums.on_gradient)
    return sums.finish()
