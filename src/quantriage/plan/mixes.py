"""A mix by name: one assignment for every site, as it is measured, compared and shipped.

Uniform baselines, the first-and-last rule, allocated mixes and swaps all become this one type, so that
whatever measures them cannot treat one kind better than another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from quantriage.numerics.schemes import Scheme
from quantriage.plan.allocate import Mix
from quantriage.plan.sizes import bits_per_weight
from quantriage.plan.units import Unit
from quantriage.records.types import Assignment, Finding, Plan, SiteInfo

MixKind = Literal["uniform", "first-and-last", "mix", "swap"]


@dataclass(frozen=True)
class NamedMix:
    """Schemes of all sites (None: full precision), with stored bytes and the KL predicted, if it is known."""

    label: str
    kind: MixKind
    schemes: Mapping[str, Scheme | None]
    bytes: int
    predicted_kl: float | None


def named(units: Sequence[Unit], mix: Mix, label: str, kind: MixKind = "mix") -> NamedMix:
    """The mix with its choices spread over the sites of the units."""
    return NamedMix(label, kind, spread(units, [o.scheme for o in mix.choices]), mix.bytes, mix.kl)


def spread(units: Sequence[Unit], schemes: Sequence[Scheme | None]) -> dict[str, Scheme | None]:
    """Site name -> scheme, from one scheme for each unit."""
    return {s.name: scheme for unit, scheme in zip(units, schemes, strict=True) for s in unit.sites}


def plan_of(
    mix: NamedMix,
    sites: Sequence[SiteInfo],
    target: str,
    origin: str,
    method: str = "gptq",
    findings: Sequence[Finding] = (),
) -> Plan:
    """The mix as a record, its lines in the order of `sites`."""
    lines = tuple(
        Assignment(site=site.name, scheme=str(mix.schemes[site.name] or "none"), method=method)
        for site in sites
    )
    return Plan(
        target=target,
        assignments=lines,
        bits_per_weight=bits_per_weight(mix.bytes, sites),
        bytes=mix.bytes,
        predicted_kl=mix.predicted_kl,
        origin=origin,
        findings=tuple(findings),
    )
