"""What a mix must beat: every uniform scheme of the target, and the rule "spare the first and last block".

Baselines are made as strong as the target allows: a group size that does not divide a width is resolved, a
unit that no scheme fits stays in full precision and is counted so, and first-and-last takes the pair of
schemes with the lowest predicted KL rather than one fixed pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quantriage.errors import BudgetError
from quantriage.numerics.schemes import PerGroup, ScaleDtype, Scheme
from quantriage.plan.group_size import resolve
from quantriage.plan.mixes import NamedMix, spread
from quantriage.plan.targets import target_named
from quantriage.plan.units import Unit, form_units
from quantriage.records.types import Finding, SiteInfo


@dataclass(frozen=True)
class _Uniform:
    """One menu entry applied to every unit, parallel to the units; KL is None where it is not predicted."""

    spec: str
    bits: int
    schemes: tuple[Scheme | None, ...]
    bytes: tuple[int, ...]
    kl: tuple[float | None, ...]


def group_sizes(target: str) -> tuple[int, ...]:
    """Group sizes that occur in the target's menu, ascending."""
    found = {Scheme.named(spec).granularity for spec in target_named(target).schemes}
    return tuple(sorted(g.size for g in found if isinstance(g, PerGroup)))


def fit(scheme: Scheme, unit: Unit, target: str) -> tuple[Scheme | None, tuple[Finding, ...]]:
    """The scheme that all members of `unit` share when `scheme` is asked; None if they must stay dense."""
    alignment = target_named(target).alignment
    names = ", ".join(site.name for site in unit.sites)
    if any(size % alignment for site in unit.sites for size in site.shape):
        text = f"{names}: features are not multiples of {alignment}, which {target} needs; full precision"
    else:
        try:
            used, finding = resolve(scheme, unit.width, group_sizes(target))
        except BudgetError as error:
            text = f"{names}: {error}; left in full precision"
        else:
            if finding is None:
                return used, ()
            where = (
                Finding(severity=finding.severity, code=finding.code, text=finding.text, site=site.name)
                for site in unit.sites
            )
            return used, tuple(where)
    dense = (
        Finding(severity="warning", code="site-left-dense", text=text, site=site.name) for site in unit.sites
    )
    return None, tuple(dense)


def resolve_uniform(
    scheme: Scheme, sites: Sequence[SiteInfo], target: str
) -> tuple[dict[str, Scheme | None], tuple[Finding, ...]]:
    """`scheme` for every site, group sizes resolved for each width, and what was changed."""
    units = form_units(sites, lambda _: (), {})
    fitted = [fit(scheme, unit, target) for unit in units]
    return spread(units, [used for used, _ in fitted]), tuple(f for _, found in fitted for f in found)


def uniform_mixes(
    units: Sequence[Unit], target: str, budget_bytes: int, scale_dtype: ScaleDtype = "float16"
) -> tuple[NamedMix, ...]:
    """Every distinct uniform assignment of the target's menu within the budget, in the menu's order."""
    mixes: list[NamedMix] = []
    for uniform in _uniforms(units, target, scale_dtype):
        schemes = spread(units, uniform.schemes)
        size = sum(uniform.bytes)
        if size <= budget_bytes and all(mix.schemes != schemes for mix in mixes):
            held = {str(scheme) for scheme in uniform.schemes if scheme is not None}
            label = held.pop() if len(held) == 1 else uniform.spec  # what all widths were resolved to
            mixes.append(NamedMix(label, "uniform", schemes, size, _sum(uniform.kl)))
    return tuple(mixes)


def first_and_last(
    units: Sequence[Unit], target: str, budget_bytes: int, scale_dtype: ScaleDtype = "float16"
) -> NamedMix | None:
    """First and last block at more bits than the rest, the rest uniform; None if nothing fits.

    Of all pairs that fit, the one with the lowest predicted KL; without predictions, the largest.
    """
    blocks = [site.block for unit in units for site in unit.sites]
    ends = [any(site.block in (min(blocks), max(blocks)) for site in unit.sites) for unit in units]
    if all(ends):
        return None
    uniforms = _uniforms(units, target, scale_dtype)
    best: tuple[tuple[bool, float, int], NamedMix] | None = None
    for rest in uniforms:
        for end in (*uniforms, _dense(units)):
            size = sum(e if spared else r for e, r, spared in zip(end.bytes, rest.bytes, ends, strict=True))
            if end.bits <= rest.bits or size > budget_bytes:
                continue
            kl = _sum([e if spared else r for e, r, spared in zip(end.kl, rest.kl, ends, strict=True)])
            rank = (kl is None, kl or 0.0, -size)
            if best is not None and rank >= best[0]:
                continue
            chosen = [
                e if spared else r for e, r, spared in zip(end.schemes, rest.schemes, ends, strict=True)
            ]
            label = f"first and last {end.spec}, rest {rest.spec}"
            best = rank, NamedMix(label, "first-and-last", spread(units, chosen), size, kl)
    return None if best is None else best[1]


def _uniforms(units: Sequence[Unit], target: str, scale_dtype: ScaleDtype) -> list[_Uniform]:
    """Every entry of the menu applied to all units, smaller groups first within a grid."""
    predicted = [{option.scheme: option.kl for option in unit.options} for unit in units]
    uniforms = []
    for spec in target_named(target).schemes:
        asked = Scheme.named(spec, scale_dtype)
        used = tuple(fit(asked, unit, target)[0] for unit in units)
        sizes = tuple(unit.bytes_as(scheme) for unit, scheme in zip(units, used, strict=True))
        kl = tuple(known.get(scheme) for known, scheme in zip(predicted, used, strict=True))
        uniforms.append(_Uniform(spec, asked.grid.bits, used, sizes, kl))
    return uniforms


def _dense(units: Sequence[Unit]) -> _Uniform:
    sizes = tuple(unit.bytes_as(None) for unit in units)
    return _Uniform("full precision", 16, (None,) * len(units), sizes, (0.0,) * len(units))


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
