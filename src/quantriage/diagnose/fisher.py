"""What quantizing each site in each scheme would cost, predicted from one forward and one backward pass.

To second order the KL between reference and candidate is half the Fisher form of the weight change,
E[(d loss)^2] / 2 with labels drawn from the model itself, and d loss is the inner product of the gradient at
the site's output with dW x. Per token and summed, as FIELD-style scores do it, the products of different
positions are dropped; per sequence they are kept but one sequence is one sample. `blend` in this file takes
the ranking of the first and the level of the second (docs/lab-log.md has the ablation).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantriage.model.capture import WeightCall
from quantriage.model.site import Site, read_site
from quantriage.numerics.choose_qparams import choose_qparams
from quantriage.numerics.min_max import MinMax
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.rounding import quantize
from quantriage.numerics.schemes import Scheme
from quantriage.numerics.weight_error import WeightError, weight_error
from quantriage.stream.site_products import SiteProducts, output_rows
from quantriage.stream.stream import BlockGradients, Stream

Key = tuple[str, Scheme]


@dataclass(frozen=True)
class FisherScores:
    """Per site and scheme: predicted KL (nats per token) and the weight error of plain rounding."""

    per_token: dict[Key, float]
    per_sequence: dict[Key, float]
    errors: dict[Key, WeightError]


def nearest(weight: Tensor, scheme: Scheme) -> QuantizedTensor:
    """Round to nearest with min-max scales: the candidate that every rung of the ladder scores."""
    return quantize(weight, scheme, choose_qparams(weight, scheme, MinMax()))


def fisher_scores(
    stream: Stream, menus: Mapping[str, tuple[Scheme, ...]], seed: int, draws: int = 1
) -> FisherScores:
    """Score every site in `menus` for each of its schemes on the stream's tokens.

    draws: how many times labels are sampled; each draw costs a forward and a backward pass. Memory: one
    block, its weight errors in every scheme of one site, and the stream's state budget.
    """
    token_sums: dict[Key, float] = {}
    sequence_sums: dict[Key, float] = {}
    errors: dict[Key, WeightError] = {}

    def on_block(index: int, block: nn.Module, gradients: BlockGradients) -> None:
        sites = [s for s in stream.sites if s.block == index and menus.get(s.name)]
        changes: dict[Key, Tensor] = {}
        for site in sites:
            weight = read_site(block, site).float()
            for scheme in menus[site.name]:
                candidate = nearest(weight, scheme)
                errors.setdefault((site.name, scheme), weight_error(weight, candidate))
                changes[site.name, scheme] = candidate.dequantize().sub_(weight)
        products = SiteProducts(sites)

        def on_gradient(start: int, call: WeightCall, gradient: Tensor) -> None:
            sequences = stream.rows(start).shape[0]
            inputs = call.input.reshape(-1, call.input.shape[-1])
            for site in products.of(call):
                of_site = {s: changes[site.name, s] for s in menus[site.name]}
                _score(site, of_site, inputs, output_rows(site, gradient), sequences, token_sums, sequence_sums)

        gradients.run(on_gradient)

    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        stream.forward(keep=True, stage="sensitivity: forward")
        stream.head_gradients(generator)
        stream.backward(on_block, stage="sensitivity: backward")
        stream.states.clear()
    scale = 0.5 / (stream.tokens.tokens.numel() * draws)
    return FisherScores(
        {key: value * scale for key, value in token_sums.items()},
        {key: value * scale for key, value in sequence_sums.items()},
        errors,
    )


def _score(
    site: Site,
    changes: Mapping[Scheme, Tensor],
    inputs: Tensor,
    gradients: Tensor,
    sequences: int,
    token_sums: dict[Key, float],
    sequence_sums: dict[Key, float],
) -> None:
    """Add (g . dW x)^2, per token and per sequence. inputs [n, in], gradients [n, out]."""
    whole = len(inputs) % sequences == 0 and site.expert is None
    for scheme, change in changes.items():
        effect = (inputs @ change.to(inputs.dtype).T).float().mul_(gradients.float()).sum(dim=1)
        key = site.name, scheme
        token_sums[key] = token_sums.get(key, 0.0) + float(effect.double().square().sum())
        by_sequence = effect.double().view(sequences, -1).sum(dim=1) if whole else effect.double()
        sequence_sums[key] = sequence_sums.get(key, 0.0) + float(by_sequence.square().sum())
