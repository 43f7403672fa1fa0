"""Hessians of every site of a block, weighted by what the loss reads.

One backward visit of a block gives both halves: the inputs x_t are recomputed from the boundary states and
the gradients g_t at each product's output arrive from above. Token weights are the mean squared gradient over
the outputs of all sites that share an input, so that q, k and v (and gate, up) share one Hessian, one
factorization and one column order. One Hessian for each site instead lowered the KL by 1.5% on SmolLM2 for
30% more work; Hessians from inputs that passed through the quantized blocks needed a third forward pass and
serialised the blocks (figures in docs/lab-log.md).
"""

import torch
from torch import Tensor

from quantriage.model.capture import WeightCall
from quantriage.model.site import Site
from quantriage.stream.hessian import HessianSum
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


def loss_hessians(
    gradients: BlockGradients, sites: tuple[Site, ...], weighted: bool = True
) -> dict[InputKey, HessianSum]:
    """Sums for every input of the block, over all batches. Memory: one [in, in] for each distinct input.

    Also carries the gradient to the boundary before the block, as every backward visit does.
    """
    products = SiteProducts(sites)
    sums: dict[InputKey, HessianSum] = {}
    pending: dict[InputKey, tuple[Tensor, Tensor]] = {}  # inputs [n, in], squared gradients [n]
    batch = -1

    def flush() -> None:
        for key, (inputs, squares) in pending.items():
            if key not in sums:
                sums[key] = HessianSum(inputs.shape[1], inputs.device)
            sums[key].update(inputs, token_weights(squares) if weighted else None)
        pending.clear()

    def on_gradient(start: int, call: WeightCall, gradient: Tensor) -> None:
        nonlocal batch
        if start != batch:
            flush()
            batch = start
        for site in products.of(call):
            key = input_key(site)
            own = output_rows(site, gradient).float().square().sum(dim=1)
            if key in pending:
                inputs, squares = pending[key]
                pending[key] = (inputs, squares + own)
            else:
                pending[key] = (call.input.reshape(-1, call.input.shape[-1]), own)

    gradients.run(on_gradient)
    with torch.no_grad():
        flush()
    for site in sites:  # an expert that no token reached
        key = input_key(site)
        if key not in sums:
            sums[key] = HessianSum(site.shape[1], gradients.stream.compute.device)
    return sums
