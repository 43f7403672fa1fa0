"""What the best rounding known here would leave of a site's loss, in the scheme that the candidate chose.

It tells a layer that is hard from one that was done badly. The rounding is fitted on one half of the tokens
and scored on the other, together with the candidate's error: on its own tokens any fitted rounding looks
better than it is. Fitted on few tokens it is not the optimum: the figure is what can at least be reached.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from quantriage.diagnose.change_scores import Change, Shift, score_changes
from quantriage.diagnose.hybrid import Pair, Unit
from quantriage.diagnose.own_rounding import OwnScheme, own_scheme
from quantriage.diagnose.unit_errors import site_weight, stored_of
from quantriage.methods.protocol import SiteStatistics
from quantriage.model.site import Site, read_site
from quantriage.stream.block_hessians import block_hessians, sites_by_block
from quantriage.stream.loss_hessians import BlockSums
from quantriage.stream.site_products import input_key
from quantriage.stream.stream import Stream

PASSES = 4.5
"""Forward passes that `optima` costs over all tokens: half of them are run for fitting, half for scoring."""


@dataclass(frozen=True)
class Optimum:
    """A rounding in the candidate's scheme [out, in], dequantized, and the share of the loss it leaves."""

    weight: Tensor
    share: float


def optima(fit: Stream, score: Stream, pair: Pair, units: Sequence[Unit], seed: int) -> dict[str, Optimum]:
    """Best roundings of sites that are stored in an integer scheme, by unit.

    fit, score: streams of the reference over tokens that do not overlap. Memory: one block with its Hessians,
    and one float32 weight for each unit: pass few.
    """
    schemes = {unit.name: own for unit in units if (own := own_scheme(stored_of(pair, unit))) is not None}
    if not schemes:
        return {}
    rounded = _fit(fit, schemes, seed)
    of_name = {unit.name: unit for unit in units}

    def changes(site: Site, weight: Tensor) -> dict[str, Change]:
        if site.name not in rounded:
            return {}
        actual = site_weight(pair, of_name[site.name], True) - weight
        return {"actual": Shift(actual), "best": Shift(rounded[site.name] - weight)}

    scores = score_changes(score, changes, seed + 1, stage="score best roundings").kl
    found = {}
    for name, weight in rounded.items():
        actual = scores[name, "actual"]
        if actual > 0:
            found[name] = Optimum(weight, scores[name, "best"] / actual)
    return found


def _fit(stream: Stream, schemes: Mapping[str, OwnScheme], seed: int) -> dict[str, Tensor]:
    """GPTQ of the wanted sites, on Hessians weighted by what the loss reads."""
    found: dict[str, Tensor] = {}
    of_block = sites_by_block(stream.sites, schemes)

    def on_block(index: int, block: nn.Module, sums: BlockSums) -> None:
        statistics = {key: SiteStatistics(total.value(), total.tokens) for key, total in sums.inputs.items()}
        for site in of_block[index]:
            weight = read_site(block, site).float().contiguous()
            found[site.name] = schemes[site.name].best(weight, statistics[input_key(site)])

    block_hessians(stream, of_block, seed, on_block, ("fit best roundings", "best roundings"))
    return found
