"""What quantizing each site in each scheme would cost, predicted from one forward and one backward pass.

To second order the KL between reference and candidate is half the Fisher form of the weight change,
E[(sum over positions of g . dW x)^2] / 2, with g the gradient at the site's output of a random probe of the
logits (stream/fisher_probe.py). Squaring position by position drops the products of different positions:
little noise, but about a third too low on SmolLM2. Squaring the sum keeps them, but one sequence is then one
sample. `FisherScores.kl` is the geometric mean of the second and of the first raised to the second's level,
pooled over the blocks (ablation in docs/lab-log.md).
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
    kl: dict[Key, float]


def pool(
    per_token: Mapping[Key, float], per_sequence: Mapping[Key, float], module_of: Mapping[str, str]
) -> dict[Key, float]:
    """Geometric mean of the per-sequence score and the per-token score brought to the per-sequence level.

    The level is the ratio of sums (per sequence / per token) over the same module in all blocks, scheme by
    scheme. module_of: site name -> name within its block.
    """
    totals: dict[tuple[str, Scheme], list[float]] = {}
    for (name, scheme), value in per_token.items():
        pair = totals.setdefault((module_of[name], scheme), [0.0, 0.0])
        pair[0] += value
        pair[1] += per_sequence[name, scheme]
    found = {}
    for (name, scheme), value in per_token.items():
        below, above = totals[module_of[name], scheme]
        pooled = value * above / below if below > 0 else 0.0
        found[name, scheme] = (pooled * per_sequence[name, scheme]) ** 0.5
    return found


def nearest(weight: Tensor, scheme: Scheme) -> QuantizedTensor:
    """Round to nearest with min-max scales: the candidate that every rung of the ladder scores."""
    return quantize(weight, scheme, choose_qparams(weight, scheme, MinMax()))


def fisher_scores(
    stream: Stream, menus: Mapping[str, tuple[Scheme, ...]], seed: int, draws: int = 1
) -> FisherScores:
    """Score every site in `menus` for each of its schemes on the stream's tokens.

    draws: probes drawn; each costs a forward and a backward pass. Memory: one
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
                _score(
                    site, of_site, inputs, output_rows(site, gradient), sequences, token_sums, sequence_sums
                )

        gradients.run(on_gradient)

    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        stream.forward(keep=True, stage="sensitivity: forward")
        stream.head_gradients(generator)
        stream.backward(on_block, stage="sensitivity: backward")
        stream.states.clear()
    scale = 0.5 / (stream.tokens.tokens.numel() * draws)
    per_token = {key: token_sums.get(key, 0.0) * scale for key in errors}  # an expert may see no token
    per_sequence = {key: sequence_sums.get(key, 0.0) * scale for key in errors}
    module_of = {site.name: site.module for site in stream.sites}
    return FisherScores(per_token, per_sequence, errors, pool(per_token, per_sequence, module_of))


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
