"""From tallies and measurements to the rows of a sweep: schemes, sizes in stored bytes, optima, notes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quantriage.diagnose.sweep_advice import difference, size_factor
from quantriage.errors import BudgetError
from quantriage.evaluate.intervals import mean_interval, perplexity_interval
from quantriage.formats.folders import FOLDERS, FolderFormat
from quantriage.model.site import ModelMap, Site
from quantriage.numerics.schemes import Scheme
from quantriage.plan.group_size import resolve
from quantriage.plan.sizes import bits_per_weight, site_bytes
from quantriage.plan.targets import TARGETS, Target, menu
from quantriage.records.sweep import ErrorParts, SweepOptimum, SweepVariant
from quantriage.records.types import Finding
from quantriage.workflows.sweep_measure import Measured
from quantriage.workflows.sweep_rounding import SchemeOf, Tally
from quantriage.workflows.sweep_trials import Pick, Trial

_SIZES = (16, 32, 64, 128, 256)  # that a size which does not divide a layer may be resolved to
Picks = dict[str, int]
"""Site name -> number of the trial whose weight it takes."""


def schemes_for(scheme: Scheme, sites: Sequence[Site]) -> tuple[SchemeOf, tuple[Finding, ...]]:
    """`scheme` for every site as its width allows, and how many sites got something else."""
    found: dict[str, Scheme | None] = {}
    changed: dict[str, int] = {}
    for site in sites:
        try:
            found[site.name], finding = resolve(scheme, site.shape[1], _SIZES)
        except BudgetError as error:
            found[site.name] = None
            text = f"left in full precision: {error}"
            changed[text] = changed.get(text, 0) + 1
        else:
            if finding is not None:
                changed[finding.text] = changed.get(finding.text, 0) + 1
    return found, tuple(
        Finding(severity="info", code="scheme-resolved", text=f"{count} of {len(sites)} layers: {text}")
        for text, count in changed.items()
    )


def loads(schemes: SchemeOf, model_map: ModelMap) -> tuple[str, ...]:
    """Targets of folders whose menu holds every site's scheme at its shape, and whose format all of them."""
    chosen = {name: scheme for name, scheme in schemes.items() if scheme is not None}

    def fits(target: Target, folder: FolderFormat, site: Site) -> bool:
        scheme = chosen.get(site.name)
        if scheme is None:
            return True
        storable = folder.supports(scheme, site.shape, site.transposed) is None
        return storable and scheme in menu(target.name, site.shape, scheme.scale_dtype)

    folders = {name: FOLDERS[t.stored](chosen) for name, t in TARGETS.items() if t.stored in FOLDERS}
    return tuple(n for n, f in folders.items() if all(fits(TARGETS[n], f, site) for site in model_map.sites))


def best_by(
    measure: Callable[[Tally], float | None],
    tallies: Mapping[int, Sequence[Tally]],
    sites: Sequence[Site],
    shared_input: bool,
) -> Picks:
    """For every site the trial with the least `measure`, summed over the sites of its input if shared.

    Sites of which no trial has the measure are left out. Of equals the earliest trial wins.
    """
    by_site = {(n, tally.site): tally for n, of_trial in tallies.items() for tally in of_trial}
    groups: dict[tuple[object, ...], list[str]] = {}
    for site in sites:
        key = (site.block, site.input_group, site.expert) if shared_input else (site.name,)
        groups.setdefault(key, []).append(site.name)
    picks: Picks = {}
    for names in groups.values():
        best: tuple[float, int] | None = None
        for number in sorted(tallies):
            values = [measure(by_site[number, n]) for n in names if (number, n) in by_site]
            known = [value for value in values if value is not None]
            if len(known) == len(names) and (best is None or sum(known) < best[0]):
                best = sum(known), number
        if best is not None:
            picks |= dict.fromkeys(names, best[1])
    return picks


def measure_named(by: str) -> Callable[[Tally], float | None]:
    """The figure of a tally that a pick goes by."""
    found: dict[str, Callable[[Tally], float | None]] = {
        "plain": lambda tally: tally.squared,
        "output": lambda tally: tally.output,
        "joint": lambda tally: tally.joint,
    }
    return found[by]


@dataclass(frozen=True)
class TableSource:
    """What the rows are made from, by trial number. chosen: where each site's weight comes from."""

    trials: tuple[Trial, ...]
    schemes: tuple[SchemeOf, ...]
    findings: tuple[tuple[Finding, ...], ...]
    chosen: Mapping[int, Picks]
    tallies: Mapping[int, Sequence[Tally]]
    gathering: Mapping[int, float]
    measured: Mapping[int, Measured]
    baseline: int
    calibration_tokens: int


def variants(source: TableSource, model_map: ModelMap) -> tuple[SweepVariant, ...]:
    """One row for each trial, in order."""
    comparable = len({t.needs for t in source.trials if not isinstance(t.rounding, Pick)} - {"nothing"}) == 1
    base_bits = _bits(source.schemes[source.baseline], model_map)[0]
    return tuple(
        _variant(source, number, model_map, base_bits, comparable) for number in range(len(source.trials))
    )


def _variant(
    source: TableSource, number: int, model_map: ModelMap, base_bits: float, comparable: bool
) -> SweepVariant:
    trial, measured = source.trials[number], source.measured[number]
    tallies = _own_tallies(source, number)
    bits, size = _bits(source.schemes[number], model_map)
    base = source.measured[source.baseline]
    weights = sum(math.prod(s.shape) for s in model_map.sites if source.schemes[number][s.name] is not None)
    squared, norm = sum(t.squared for t in tallies), sum(t.norm for t in tallies)
    picked = isinstance(trial.rounding, Pick)
    sources = sorted(set(source.chosen[number].values())) if picked else [number]
    seconds = sum(
        t.cpu_seconds for n in (_among(source, trial) if picked else [number]) for t in source.tallies[n]
    )
    needs_data = any(source.trials[n].needs != "nothing" for n in sources)
    tokens = trial.tokens.tokens.numel() if trial.tokens is not None else source.calibration_tokens
    kl = mean_interval(measured.kl)
    return SweepVariant(
        label=trial.label,
        value=trial.value,
        scheme=str(trial.scheme),
        method="picked" if isinstance(trial.rounding, Pick) else trial.rounding.name,
        bits_per_weight=bits,
        bytes=size,
        rmse=math.sqrt(squared / weights) if weights else 0.0,
        relative_error=math.sqrt(squared / norm) if norm else 0.0,
        output_error=_ratio(tallies, lambda t: (t.output, t.power)) if comparable else None,
        joint_error=_ratio(tallies, lambda t: (t.joint, t.joint_power)),
        parts=_parts(tallies, norm, weights),
        rounding_cpu_seconds=seconds,
        statistics_cpu_seconds=max((source.gathering.get(n, 0.0) for n in sources), default=0.0),
        calibration_tokens=tokens if needs_data else 0,
        kl=kl,
        perplexity=perplexity_interval(measured.nll),
        top1_agreement=measured.agreement,
        kl_at_equal_size=kl.value * size_factor(bits, base_bits),
        against_baseline=None if number == source.baseline else difference(measured.kl, base.kl),
        kl_sequences=measured.kl,
        loads=() if trial.activations else loads(source.schemes[number], model_map),
        loads_note=trial.loads_note,
        findings=(*source.findings[number], *_summed(tallies)),
    )


def optima(source: TableSource, model_map: ModelMap, by_output: str) -> tuple[SweepOptimum, ...]:
    """The best numeric setting of each layer. by_output: the measure that stands for the output's error."""
    fixed = {
        n: source.tallies[n]
        for n, trial in enumerate(source.trials)
        if trial.value is not None and not isinstance(trial.rounding, Pick)
    }
    shared = by_output == "joint" or any(t.chosen is not None for of in fixed.values() for t in of)
    plain = best_by(measure_named("plain"), fixed, model_map.sites, shared)
    output = best_by(measure_named(by_output), fixed, model_map.sites, shared)
    by_site = {(n, t.site): t for n, of in source.tallies.items() for t in of}

    def gain(picks: Picks, site: str, measure: Callable[[Tally], float | None]) -> float | None:
        base = by_site.get((source.baseline, site))
        if site not in picks or base is None:
            return None
        best, without = measure(by_site[picks[site], site]), measure(base)
        return best / without if best is not None and without else None

    return tuple(
        SweepOptimum(
            site=site.name,
            block=site.block,
            category=site.category,
            best_plain=source.trials[plain[site.name]].value if site.name in plain else None,
            best_output=source.trials[output[site.name]].value if site.name in output else None,
            plain_gain=gain(plain, site.name, measure_named("plain")),
            output_gain=gain(output, site.name, measure_named(by_output)),
        )
        for site in model_map.sites
    )


def _among(source: TableSource, trial: Trial) -> list[int]:
    assert isinstance(trial.rounding, Pick)
    return [n for n, other in enumerate(source.trials) if other.label in trial.rounding.among]


def _own_tallies(source: TableSource, number: int) -> list[Tally]:
    by_site = {(n, t.site): t for n, of in source.tallies.items() for t in of}
    return [by_site[n, site] for site, n in source.chosen[number].items()]


def _bits(schemes: SchemeOf, model_map: ModelMap) -> tuple[float, int]:
    """Stored bits per weight over all sites, and bytes."""
    size = sum(site_bytes(schemes[site.name], site.shape) for site in model_map.sites)
    return bits_per_weight(size, [site.info() for site in model_map.sites]), size


def _ratio(
    tallies: Sequence[Tally], parts: Callable[[Tally], tuple[float | None, float | None]]
) -> float | None:
    found = [parts(tally) for tally in tallies]
    above, below = [a for a, _ in found if a is not None], [b for _, b in found if b is not None]
    if not found or len(above) < len(found) or len(below) < len(found) or not sum(below) > 0:
        return None
    return sum(above) / sum(below)


def _parts(tallies: Sequence[Tally], norm: float, weights: int) -> ErrorParts | None:
    split = [tally.split for tally in tallies if tally.split is not None]
    if not split or len(split) < len(tallies) or not norm:
        return None
    return ErrorParts(
        clipped=sum(one[0] for one in split),
        weights=weights,
        clipping=sum(one[1] for one in split) / norm,
        rounding=sum(one[2] for one in split) / norm,
    )


def _summed(tallies: Sequence[Tally]) -> list[Finding]:
    """Warnings of all sites, one for each code, with how many sites have it."""
    by_code: dict[tuple[str, str], list[Finding]] = {}
    for finding in (f for tally in tallies for f in tally.findings if f.severity != "info"):
        by_code.setdefault((finding.severity, finding.code), []).append(finding)
    return [
        Finding(
            severity=of[0].severity, code=of[0].code, text=f"{len(of)} of {len(tallies)} layers: {of[0].text}"
        )
        for of in by_code.values()
    ]
