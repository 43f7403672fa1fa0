"""Culprits rounded in every way they may be stored, and the KL predicted for each, on tokens apart.

One backward visit of the reference gives the loss-weighted Hessians for rounding, a second one over other
tokens the predictions: a fitted rounding looks better than it is on what it was fitted to. A candidate whose
weights are rescaled (AWQ, SmoothQuant) is rounded in its own scaling and judged in the reference's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantriage.data.token_set import TokenSet
from quantriage.diagnose.change_scores import Change, Shift, score_changes
from quantriage.diagnose.hybrid import Unit
from quantriage.diagnose.unit_errors import site_weight
from quantriage.formats.rewrite import Replacement, Rewriter, Way
from quantriage.methods.protocol import SiteStatistics
from quantriage.methods.registry import METHODS
from quantriage.model.site import Site
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme
from quantriage.plan.repair_plan import KEEP
from quantriage.stream.block_hessians import block_hessians, sites_by_block
from quantriage.stream.loss_hessians import BlockSums
from quantriage.stream.site_products import input_key
from quantriage.workflows.attribute import Ground


@dataclass(frozen=True)
class LossRounding:
    """A Rounding by GPTQ with the Hessian of one input."""

    statistics: SiteStatistics

    @property
    def importance(self) -> Tensor | None:
        """The Hessian's diagonal; None if no token came by."""
        found = self.statistics.hessian.diagonal().contiguous()
        return found if bool((found > 0).any()) else None

    def quantize(self, weight: Tensor, scheme: Scheme, order: Tensor | None) -> QuantizedTensor:
        """Weight [out, in] in a scheme, columns (and the Hessian's) in `order`."""
        statistics = self.statistics
        if order is not None:
            hessian = statistics.hessian[order][:, order].contiguous()
            statistics = SiteStatistics(hessian, statistics.tokens)
        return METHODS["gptq"].quantize(weight, statistics, [scheme])[0].quantized


def without_data(width: int) -> LossRounding:
    """A rounding for a weight that no Hessian is known for."""
    return LossRounding(SiteStatistics(torch.eye(width), 0))


def wanted_tensor(ground: Ground, name: str) -> Tensor:
    """What the candidate should hold under `name`: the reference's tensor, in the candidate's scaling."""
    tensor = ground.pair.read(name, False)
    return tensor if ground.aligned is None else ground.aligned.in_own_scaling(name, tensor)


def refit(
    ground: Ground, rewriter: Rewriter, jobs: Mapping[str, Sequence[Way]], tokens: TokenSet, seed: int
) -> dict[str, dict[str, Replacement]]:
    """Replacements of sites by unit and label of the way.

    Memory: one block and its Hessians, and every replacement with a float32 copy of its weight: give few.
    """
    units = {unit.name: unit for unit in ground.units}
    found: dict[str, dict[str, Replacement]] = {}
    stream = ground.stream(tokens, ground.opened.compute, "refit")

    of_block = sites_by_block(stream.sites, jobs)

    def on_block(index: int, block: nn.Module, sums: BlockSums) -> None:  # noqa: ARG001
        statistics = {key: SiteStatistics(total.value(), total.tokens) for key, total in sums.inputs.items()}
        for site in of_block[index]:
            name = ground.pair.stored_name(units[site.name].tensors[0], True)
            rounding = LossRounding(_in_own_scaling(ground, name, statistics[input_key(site)]))
            tensor = wanted_tensor(ground, name)
            ways = jobs[site.name]
            found[site.name] = {w.label: rewriter.replace(name, w, tensor, rounding) for w in ways}

    block_hessians(stream, of_block, seed, on_block, ("round again: calibrate", "round again"))
    return found


def _in_own_scaling(ground: Ground, name: str, statistics: SiteStatistics) -> SiteStatistics:
    """The Hessian of the candidate's inputs: where its columns are larger, its inputs are smaller."""
    factors = ground.aligned.factors.get(name) if ground.aligned is not None else None
    if factors is None or factors.columns is None:
        return statistics
    columns = factors.columns
    hessian = statistics.hessian * columns * columns.unsqueeze(1)
    return SiteStatistics(hessian, statistics.tokens)


def predicted(
    ground: Ground, replaced: Mapping[str, Mapping[str, Replacement]], tokens: TokenSet, seed: int
) -> dict[tuple[str, str], float]:
    """Predicted KL by unit and label, KEEP for what the candidate holds; all finite sites that differ."""
    live = {unit.name: unit for unit in ground.live if unit.site is not None}
    stream = ground.stream(tokens, ground.opened.compute, "judge")

    def changes(site: Site, weight: Tensor) -> dict[str, Change]:
        found: dict[str, Change] = {}
        unit = live.get(site.name)
        if unit is not None:
            shift = site_weight(ground.pair, unit, True) - weight
            found[KEEP] = Shift(shift, _bias_shift(ground, unit))
        for label, replacement in replaced.get(site.name, {}).items():
            found[label] = Shift(_as_reference(ground, replacement, site) - weight)
        return found

    return score_changes(stream, changes, seed, stage="judge roundings").kl


def _bias_shift(ground: Ground, unit: Unit) -> Tensor | None:
    shift = None
    for name in unit.tensors[1:]:
        shift = ground.pair.read(name, True).float() - ground.pair.read(name, False).float()
    return shift


def _as_reference(ground: Ground, replacement: Replacement, site: Site) -> Tensor:
    """The value of a replacement in the reference's scaling, [out, in]."""
    value, name = replacement.value.to(torch.float32), replacement.name
    if ground.aligned is not None and name in ground.aligned.factors:
        value = ground.aligned.factors[name].of(value, name in ground.aligned.transposed)
    return value.T if site.transposed else value
