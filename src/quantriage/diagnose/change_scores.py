"""Predicted KL of any changes of any sites, from one forward and one backward pass.

To second order the KL between reference and candidate is half the Fisher form of the weight change,
E[(sum over positions of g . dW x)^2] / 2, with g the gradient at the site's output of a random probe of the
logits (stream/fisher_probe.py). Squaring position by position drops the products of different positions:
little noise, but about a third too low on SmolLM2. Squaring the sum keeps them, but one sequence is then one
sample. `ChangeScores.kl` is the geometric mean of the second and of the first raised to the second's level,
pooled over the blocks (ablation in docs/lab-log.md).
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from quantriage.diagnose.end_scores import EndScores
from quantriage.diagnose.noise import RowNoise, expected_squares
from quantriage.model.capture import WeightCall
from quantriage.model.site import Site, read_site
from quantriage.stream.site_products import SiteProducts, output_rows
from quantriage.stream.stream import BlockGradients, Stream

L = TypeVar("L", bound=Hashable)  # what tells the changes of one site apart: a scheme, a word


@dataclass(frozen=True)
class Shift:
    """A change of a weight [out, in], float32, and of the bias [out] beside it if there is one."""

    weight: Tensor
    bias: Tensor | None = None


Change = Shift | RowNoise
Changes = Callable[[Site, Tensor], Mapping[L, Change]]
"""Site and its weight [out, in] in float32 -> the changes to score, by label; none if it is left out."""


@dataclass(frozen=True)
class ChangeScores(Generic[L]):
    """Predicted KL in nats per token for each site and label, and the two levels it is the mean of."""

    per_token: dict[tuple[str, L], float]
    per_sequence: dict[tuple[str, L], float]
    kl: dict[tuple[str, L], float]


def score_changes(
    stream: Stream,
    changes: Changes[L],
    seed: int,
    draws: int = 1,
    stage: str = "sensitivity",
    ends: EndScores | None = None,
) -> ChangeScores[L]:
    """Score what `changes` gives for every site on the stream's tokens.

    draws: probes drawn; each costs a forward and a backward pass. Memory: one block, the changes of its
    sites, and the stream's state budget. ends: scores embedding and head in passing, for itself.
    """
    sums: dict[tuple[str, L], tuple[float, float]] = {}  # per token, per sequence

    def on_block(index: int, block: nn.Module, gradients: BlockGradients) -> None:
        sites = [s for s in stream.sites if s.block == index]
        of_site = {site.name: changes(site, read_site(block, site).float()) for site in sites}
        for name, labelled in of_site.items():
            for label in labelled:
                sums.setdefault((name, label), (0.0, 0.0))  # an expert may see no token
        products = SiteProducts([site for site in sites if of_site[site.name]])

        def on_gradient(start: int, call: WeightCall, gradient: Tensor) -> None:
            inputs = call.input.reshape(-1, call.input.shape[-1])
            for site in products.of(call):
                outputs = output_rows(site, gradient)
                whole = site.expert is None and len(inputs) % stream.rows(start).shape[0] == 0
                sequences = stream.rows(start).shape[0] if whole else len(inputs)
                for label, change in of_site[site.name].items():
                    token, sequence = _squares(change, inputs, outputs, sequences)
                    before = sums[site.name, label]
                    sums[site.name, label] = before[0] + token, before[1] + sequence

        gradients.run(on_gradient)

    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        stream.forward(keep=True, stage=f"{stage}: forward")
        if ends is not None:
            ends.at_head(stream)
        stream.head_gradients(generator)
        stream.backward(on_block, stage=f"{stage}: backward")
        if ends is not None:
            ends.at_embedding(stream)
        stream.states.clear()
    scale = 0.5 / (stream.tokens.tokens.numel() * draws)
    per_token = {key: both[0] * scale for key, both in sums.items()}
    per_sequence = {key: both[1] * scale for key, both in sums.items()}
    module_of = {site.name: site.module for site in stream.sites}
    return ChangeScores(per_token, per_sequence, pool(per_token, per_sequence, module_of))


def _squares(change: Change, inputs: Tensor, gradients: Tensor, sequences: int) -> tuple[float, float]:
    """Sums of (g . dW x)^2 per token and per sequence. inputs [n, in], gradients [n, out].

    An expert's tokens belong to no whole sequence: `sequences` is then their number.
    """
    if isinstance(change, RowNoise):
        tokens, sums = expected_squares(change, inputs, gradients, sequences)
        return float(tokens.sum()), float(sums.sum())
    moved = (inputs @ change.weight.to(inputs.dtype).T).float()
    if change.bias is not None:
        moved += change.bias
    effect = moved.mul_(gradients.float()).sum(dim=1).double()
    return float(effect.square().sum()), float(effect.view(sequences, -1).sum(dim=1).square().sum())


def pool(
    per_token: Mapping[tuple[str, L], float],
    per_sequence: Mapping[tuple[str, L], float],
    module_of: Mapping[str, str],
) -> dict[tuple[str, L], float]:
    """Geometric mean of the per-sequence score and the per-token score brought to the per-sequence level.

    The level is the ratio of sums (per sequence / per token) over the same module in all blocks, label by
    label. module_of: site name -> name within its block.
    """
    totals: dict[tuple[str, L], list[float]] = {}
    for (name, label), value in per_token.items():
        pair = totals.setdefault((module_of[name], label), [0.0, 0.0])
        pair[0] += value
        pair[1] += per_sequence[name, label]
    found = {}
    for (name, label), value in per_token.items():
        below, above = totals[module_of[name], label]
        pooled = value * above / below if below > 0 else 0.0
        found[name, label] = (pooled * per_sequence[name, label]) ** 0.5
    return found
