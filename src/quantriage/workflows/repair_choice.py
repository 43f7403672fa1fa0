"""From culprits to the replacements that a repair writes, and the records of what was chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from quantriage.data.token_set import TokenSet
from quantriage.diagnose.hybrid import Unit
from quantriage.errors import UsageError
from quantriage.formats.rewrite import DENSE, Replacement, Rewriter, Way
from quantriage.numerics.schemes import ScaleDtype
from quantriage.plan.repair_plan import AGAIN, KEEP, UNBOUNDED, Culprit, Larger, choose, larger_schemes
from quantriage.plan.targets import menu
from quantriage.plan.units import fused_groups
from quantriage.records.diagnosis import Attribution, RepairedUnit
from quantriage.records.types import Finding
from quantriage.workflows.attribute import Ground
from quantriage.workflows.refit import predicted, refit, wanted_tensor, without_data

Predictions = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Limits:
    """What a repair may spend: bits per weight over all sites, and what a target loads."""

    extra_bpw: float
    target: str


@dataclass(frozen=True)
class Chosen:
    """What to write, what was chosen, and what a person should know of it."""

    replacements: tuple[Replacement, ...]
    units: tuple[RepairedUnit, ...]
    findings: tuple[Finding, ...]


def culprits_of(attribution: Attribution) -> tuple[str, ...]:
    """Units that are damaged or badly done, and unquantized ones that matter at all: those cost nothing."""
    bad = ("damaged", "badly done")
    return tuple(
        u.unit
        for u in attribution.units
        if u.judgement in bad or (u.layout == DENSE and u.judgement != "fine" and u.relative_error > 0)
    )


def check_names(names: Sequence[str], ground: Ground) -> None:
    """Raise UsageError for a name that is no unit, with the nearest ones."""
    known = [unit.name for unit in ground.units]
    for name in names:
        if name not in known:
            last = name.rpartition(".")[2]
            near = [k for k in known if k.endswith(last)][:3] or known[:3]
            raise UsageError(f"--units {name}: the model has no such unit; for example {', '.join(near)}")


def choose_repairs(
    ground: Ground, rewriter: Rewriter, names: Sequence[str], tokens: TokenSet, limits: Limits, seed: int
) -> Chosen:
    """Round the culprits again, larger where the budget has room, and restore what is unquantized.

    tokens: calibration; three quarters round, the rest judge. Memory: see `refit`.
    """
    units = {unit.name: unit for unit in ground.units}
    sites = [n for n in names if units[n].site is not None]
    findings: list[Finding] = []
    weights = sum(prod(site.shape) for site in ground.opened.map.sites)
    capacity = int(limits.extra_bpw * weights / 8)
    groups = _groups(ground, sites, rewriter.fuses)
    own = {name: rewriter.own(_stored(ground, units[name])) for group in groups for name in group}
    for name in sites:
        reason = own[name]
        if isinstance(reason, str):
            findings.append(_finding("no-encoder", name, f"{reason}; only a larger way can replace it"))
    jobs = {
        name: _ways(ground, rewriter, units[name], own[name], name in sites, capacity, limits.target)
        for group in groups
        for name in group
    }
    fit, judge = tokens.split(max(1, tokens.sequences * 3 // 4))
    rounded = (
        refit(ground, rewriter, {n: ways for n, ways in jobs.items() if ways}, fit, seed) if jobs else {}
    )
    kl = predicted(ground, rounded, judge if judge.sequences else fit, seed + 1) if jobs else {}
    total = sum(value for (_, label), value in kl.items() if label == KEEP)
    asked = [[_culprit(ground, n, n in sites, own[n], jobs[n], kl) for n in group] for group in groups]
    decided = choose(asked, capacity, total)
    replacements, records = [], []
    for name, decision in decided.items():
        if decision == KEEP:
            if name in sites:
                findings.append(_finding("kept", name, "no rounding tried is predicted to do better; kept"))
            continue
        label = _label(own[name]) if decision == AGAIN else decision
        replacements.append(rounded[name][label])
        replacements.extend(_beside(ground, rewriter, units[name]))
        records.append(_record(ground, name, own[name], rounded[name][label].way, kl))
    for name in names:
        if name not in sites:
            found = _restored(ground, rewriter, units[name], findings)
            replacements.extend(found)
            if found:
                way = found[0].way
                records.append(_unit_record(name, way.label, way.label, 0, None, None))
    return Chosen(tuple(replacements), tuple(records), tuple(findings))


def _groups(ground: Ground, sites: Sequence[str], fuses: bool) -> list[list[str]]:
    """Culprits with those that an engine joins to them."""
    if not fuses:
        return [[name] for name in sites]
    groups = fused_groups([site.info() for site in ground.opened.map.sites])
    named = [[site.name for site in group] for group in groups]
    return [group for group in named if not set(sites).isdisjoint(group)]


def _ways(
    ground: Ground,
    rewriter: Rewriter,
    unit: Unit,
    own: Way | str,
    culprit: bool,
    capacity: int,
    target: str,
) -> list[Way]:
    """The own way of a culprit, and larger ones that fit the budget."""
    name = _stored(ground, unit)
    scheme = None if isinstance(own, str) else own.scheme
    dtype: ScaleDtype = scheme.scale_dtype if scheme is not None else "float16"
    assert unit.site is not None
    schemes = larger_schemes(scheme, menu(target, unit.site.shape, dtype))
    now = _bytes(ground, unit, own)
    larger = [w for w in rewriter.raised(name, schemes) if 0 < w.nbytes - now <= capacity]
    return [*([own] if culprit and not isinstance(own, str) else []), *larger]


def _bytes(ground: Ground, unit: Unit, own: Way | str) -> int:
    """Bytes of a unit as stored."""
    if not isinstance(own, str):
        return own.nbytes
    error = ground.errors[unit.name]
    return int(error.bits * prod(ground.pair.reference.shape(unit.tensors[0])) / 8)


def _culprit(
    ground: Ground, name: str, asked: bool, own: Way | str, ways: Sequence[Way], kl: Predictions
) -> Culprit:
    unit = next(u for u in ground.units if u.name == name)
    faulty = ground.errors[name].faulty
    kept = UNBOUNDED if faulty else kl.get((name, KEEP), 0.0)
    label = _label(own)
    now = _bytes(ground, unit, own)
    larger = {w.label: Larger(w.nbytes - now, kl[name, w.label]) for w in ways if w.label != label}
    return Culprit(name, kept, kl.get((name, label)) if asked and label else None, larger)


def _beside(ground: Ground, rewriter: Rewriter, unit: Unit) -> list[Replacement]:
    """The bias of a weight that is replaced: what was fitted to the old rounding does not suit the new."""
    found = []
    for tensor in unit.tensors[1:]:
        name = ground.pair.stored_name(tensor, True)
        own = rewriter.own(name)
        if not isinstance(own, str):
            found.append(rewriter.replace(name, own, wanted_tensor(ground, name), None))
    return found


def _restored(ground: Ground, rewriter: Rewriter, unit: Unit, findings: list[Finding]) -> list[Replacement]:
    """A norm, bias, router, embedding or head, as the candidate stores it."""
    found = []
    for tensor in unit.tensors:
        name = ground.pair.stored_name(tensor, True)
        own = rewriter.own(name)
        if isinstance(own, str):
            findings.append(_finding("no-encoder", unit.name, f"{own}; left as it is"))
            continue
        value = wanted_tensor(ground, name)
        rounding = without_data(value.shape[-1]) if own.scheme is not None else None
        found.append(rewriter.replace(name, own, value, rounding))
    return found


def _record(ground: Ground, name: str, own: Way | str, way: Way, kl: Predictions) -> RepairedUnit:
    unit = next(u for u in ground.units if u.name == name)
    before = _label(own) or ground.errors[name].layout
    added = way.nbytes - _bytes(ground, unit, own)
    return _unit_record(name, before, way.label, added, kl.get((name, KEEP)), kl.get((name, way.label)))


def _unit_record(
    name: str, before: str, after: str, added: int, kl_before: float | None, kl_after: float | None
) -> RepairedUnit:
    return RepairedUnit(
        unit=name,
        before=before,
        after=after,
        bytes_added=added,
        predicted_before=kl_before,
        predicted_after=kl_after,
    )


def _stored(ground: Ground, unit: Unit) -> str:
    return ground.pair.stored_name(unit.tensors[0], True)


def _label(own: Way | str) -> str:
    return "" if isinstance(own, str) else own.label


def _finding(code: str, site: str, text: str) -> Finding:
    return Finding(severity="warning", code=code, text=text, site=site)
