"""Units of choice: sites that an engine fuses (q/k/v, gate/up, experts) choose one scheme together.

A unit is a connected component of the relation `fused_with`, taken in both directions, and its options are
the schemes every member can hold and every member has a prediction for. Letting the solver choose per site
under equality constraints was rejected: the same optimum with several times the variables.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd, isfinite

from quantriage.errors import BudgetError, UsageError
from quantriage.numerics.schemes import Scheme
from quantriage.plan.sizes import site_bytes
from quantriage.records.types import SiteInfo


@dataclass(frozen=True)
class Option:
    """One way to store a unit: scheme (None: full precision), bytes, predicted KL in nats per token."""

    scheme: Scheme | None
    bytes: int
    kl: float


@dataclass(frozen=True)
class Unit:
    """Sites that share one scheme, in model order, and what they may choose."""

    sites: tuple[SiteInfo, ...]
    options: tuple[Option, ...]

    @property
    def width(self) -> int:
        """Greatest common divisor of the members' in_features: a group divides all iff it divides this."""
        return gcd(*(site.shape[1] for site in self.sites))

    @cached_property
    def frontier(self) -> tuple[Option, ...]:
        """Options that no other beats in both bytes and KL, smallest first (so KL falls)."""
        kept: list[Option] = []
        for option in sorted(self.options, key=lambda o: (o.bytes, o.kl)):
            if not kept or option.kl < kept[-1].kl:
                kept.append(option)
        return tuple(kept)

    def bytes_as(self, scheme: Scheme | None) -> int:
        """Bytes of all members stored as `scheme`."""
        return sum(site_bytes(scheme, site.shape) for site in self.sites)


def fused_groups(sites: Sequence[SiteInfo]) -> tuple[tuple[SiteInfo, ...], ...]:
    """Connected components of `fused_with`, each and all in the order of `sites`.

    Raises UsageError for a name given twice or fused with a site that is not listed.
    """
    by_name = {site.name: site for site in sites}
    if len(by_name) != len(sites):
        raise UsageError("a site name occurs twice; site names must be unique")
    linked: dict[str, set[str]] = {name: set() for name in by_name}
    for site in sites:
        for other in site.fused_with:
            if other not in by_name:
                raise UsageError(f"{site.name} is fused with {other}, which is not among the sites given")
            linked[site.name].add(other)
            linked[other].add(site.name)
    order = {name: index for index, name in enumerate(by_name)}
    seen: set[str] = set()
    groups: list[tuple[SiteInfo, ...]] = []
    for name in by_name:
        if name in seen:
            continue
        component, waiting = {name}, [name]
        while waiting:
            fresh = linked[waiting.pop()] - component
            component |= fresh
            waiting.extend(fresh)
        seen |= component
        groups.append(tuple(by_name[member] for member in sorted(component, key=order.__getitem__)))
    return tuple(groups)


def form_units(
    sites: Sequence[SiteInfo],
    menu_of: Callable[[tuple[int, int]], Iterable[Scheme]],
    kl: Mapping[tuple[str, Scheme], float],
) -> tuple[Unit, ...]:
    """Units of `sites` with the options that every member can hold and has a prediction for.

    menu_of: schemes for a shape [out, in], such as `menu` of a target; kl: (site name, scheme) -> nats
    per token. Full precision is always an option. Raises BudgetError for a prediction that is no number.
    """
    units = []
    for members in fused_groups(sites):
        first, *rest = (tuple(menu_of(site.shape)) for site in members)
        options = []
        for scheme in first:
            keys = [(site.name, scheme) for site in members]
            if not all(scheme in menu for menu in rest) or not all(key in kl for key in keys):
                continue
            for key in keys:
                if not isfinite(kl[key]) or kl[key] < 0:
                    raise BudgetError(
                        f"predicted KL of {key[0]} as {key[1]} is {kl[key]}; expected a finite number >= 0"
                    )
            size = sum(site_bytes(scheme, site.shape) for site in members)
            options.append(Option(scheme, size, sum(kl[key] for key in keys)))
        options.append(Option(None, sum(site_bytes(None, site.shape) for site in members), 0.0))
        units.append(Unit(members, tuple(options)))
    return tuple(units)
