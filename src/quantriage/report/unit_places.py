"""Units of a checkpoint under diagnosis as places in the map of layers.

A unit's record names its block but not its module: that is what stands behind the block's number in its
name, unless the run recorded its sites. Experts of a block then share a cell as they do for a recovery.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quantriage.records.diagnosis import UnitAttribution
from quantriage.records.types import SiteInfo


@dataclass(frozen=True)
class UnitPlace:
    """A unit inside a block."""

    name: str
    block: int
    module: str


def placed(units: Iterable[UnitAttribution], sites: Mapping[str, SiteInfo]) -> tuple[UnitPlace, ...]:
    """Those units that stand in a block: sites in the order of `sites`, then others by module.

    Not in the order given: records stand by cost, and a map's columns should not depend on that.
    """
    order = {name: index for index, name in enumerate(sites)}
    found = [
        UnitPlace(
            unit.unit,
            unit.block,
            sites[unit.unit].module if unit.unit in sites else module_of(unit.unit, unit.block),
        )
        for unit in units
        if unit.block is not None
    ]
    return tuple(sorted(found, key=lambda u: (order.get(u.name, len(order)), u.module, u.block)))


def module_of(name: str, block: int) -> str:
    """What follows the block's number in a name; the whole name where the number does not stand in it."""
    _, number, module = name.partition(f".{block}.")
    return module if number and module else name
