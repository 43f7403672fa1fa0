"""Bytes and bits per weight of sites, counted as stored: codes, scales, zero points and padding.

Full precision is counted at two bytes a weight, whatever dtype the source has, because that is what a target
serves; so a plan's size depends on the plan alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from quantriage.errors import BudgetError
from quantriage.formats.compressed_tensors import stored_bytes
from quantriage.numerics.schemes import Scheme
from quantriage.records.types import END_CATEGORIES, SiteInfo

DENSE_BYTES = 2  # of one weight left in full precision


def site_bytes(scheme: Scheme | None, shape: tuple[int, int]) -> int:
    """Bytes of a weight of `shape` [out, in]; None is full precision."""
    if scheme is None:
        return prod(shape) * DENSE_BYTES
    return scheme.stored_bits(shape) // 8 if scheme.in_blocks else stored_bytes(scheme, shape)


def weight_count(sites: Iterable[SiteInfo]) -> int:
    """Number of weights in all sites."""
    return sum(prod(site.shape) for site in sites)


def bits_per_weight(total_bytes: int, sites: Iterable[SiteInfo]) -> float:
    """Stored bits of `total_bytes` for each weight of the sites. Raises BudgetError without weights."""
    weights = weight_count(sites)
    if not weights:
        raise BudgetError("no site can be quantized; bits per weight needs at least one")
    return 8 * total_bytes / weights


def bits_in_blocks(schemes: Mapping[str, Scheme | None], sites: Sequence[SiteInfo]) -> float | None:
    """Bits per weight of the blocks' sites alone; None if no embedding or head is among `sites`."""
    inside = [site for site in sites if site.category not in END_CATEGORIES]
    if len(inside) == len(sites):
        return None
    return bits_per_weight(sum(site_bytes(schemes[site.name], site.shape) for site in inside), inside)


def budget_bytes_for(bpw: float, sites: Iterable[SiteInfo]) -> int:
    """Largest whole number of bytes that is at most `bpw` bits per weight over the sites."""
    if not 0 < bpw < 1e6:
        raise BudgetError(f"budget of {bpw} bits per weight; expected a positive number such as 4.5")
    return int(bpw * weight_count(sites) / 8)
