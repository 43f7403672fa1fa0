"""From a weight product seen in a block to the sites it belongs to.

One product may be several sites (gate and up fused in one expert matrix are two row ranges), and several
sites may share one input (q, k and v): statistics of the input are kept per `input_key`, those of the output
per site.
"""

from collections.abc import Sequence

from torch import Tensor

from quantriage.model.capture import WeightCall
from quantriage.model.site import Site

InputKey = tuple[int, int | None]  # input group, expert


def input_key(site: Site) -> InputKey:
    """What identifies the input of a site within its block."""
    return site.input_group, site.expert


class SiteProducts:
    """The sites of one block, looked up by product."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._by_product: dict[tuple[str, int | None], list[Site]] = {}
        for site in sites:
            self._by_product.setdefault((site.parameter, site.expert), []).append(site)

    def of(self, call: WeightCall) -> list[Site]:
        """Sites that the product computes; empty for a product that is not quantized, such as a router."""
        return self._by_product.get((call.parameter, call.expert), [])


def output_rows(site: Site, output: Tensor) -> Tensor:
    """The part [n, out] of a product's output or output gradient that belongs to the site."""
    flat = output.reshape(-1, output.shape[-1])
    return flat if site.rows is None else flat[:, site.rows[0] : site.rows[1]]
