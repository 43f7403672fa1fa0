"""Seeds of a diagnosis for each site: rank, category, share of the predicted loss, and advice in words."""

from collections.abc import Mapping, Sequence

from quantriage.model.site import End, ModelMap, Site
from quantriage.numerics.schemes import Scheme
from quantriage.records.types import Diagnosis

HEAVY = 4.0  # times the mean share from which a site is worth more bits
LIGHT = 0.25


def diagnose_sites(
    model_map: ModelMap, base: Mapping[str, Scheme], predicted: Mapping[tuple[str, Scheme], float]
) -> list[Diagnosis]:
    """One record for each site in `base` (site -> its cheapest uniform scheme), most sensitive first."""
    sites = [part for part in model_map.parts if part.name in base]
    costs = {site.name: predicted[site.name, base[site.name]] for site in sites}
    total = sum(costs.values())
    ordered = sorted(sites, key=lambda site: -costs[site.name])
    found = []
    for rank, site in enumerate(ordered, start=1):
        share = costs[site.name] / total if total > 0 else 0.0
        options = [(s, kl) for (name, s), kl in predicted.items() if name == site.name]
        found.append(
            Diagnosis(
                site=site.name,
                rank=rank,
                category=category(site, model_map.blocks),
                share=share,
                recommendation=_advice(base[site.name], costs[site.name], share * len(sites), options),
            )
        )
    return found


def category(site: Site | End, blocks: int) -> str:
    """Where the site stands: first or last block, and its part in the block."""
    if isinstance(site, End):
        return site.category
    if site.block == 0:
        return f"first block, {site.category}"
    if site.block == blocks - 1:
        return f"last block, {site.category}"
    return site.category


def _advice(base: Scheme, cost: float, times_mean: float, options: Sequence[tuple[Scheme, float]]) -> str:
    if times_mean < LIGHT:
        return f"tolerates {base} well ({times_mean:.2f} x the mean cost): a place to save bytes"
    if times_mean < HEAVY:
        return f"ordinary at {base} ({times_mean:.1f} x the mean cost): decide by the budget"
    finer = [(s, kl) for s, kl in options if s.grid.bits == base.grid.bits and kl < cost]
    best = min(finer, key=lambda item: item[1], default=None)
    if best is not None and best[1] < 0.5 * cost:
        return (
            f"{times_mean:.1f} x the mean cost at {base}; {best[0]} alone is predicted to remove "
            f"{1 - best[1] / cost:.0%} of it: smaller groups before more bits"
        )
    higher = [(s, kl) for s, kl in options if s.grid.bits > base.grid.bits and kl < cost]
    cheapest = min(higher, key=lambda item: item[0].grid.bits, default=None)
    if cheapest is not None:
        return f"{times_mean:.1f} x the mean cost at {base}, and finer groups do not help: use {cheapest[0]}"
    return f"{times_mean:.1f} x the mean cost at {base}: leave it in full precision"
