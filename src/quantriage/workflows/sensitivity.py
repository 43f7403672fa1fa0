"""`sensitivity`: score every site and scheme, write the ladder's records and a report."""

from pathlib import Path

from quantriage.data.token_set import TokenSet
from quantriage.diagnose.advice import diagnose_sites
from quantriage.diagnose.fisher import FisherScores, Key, fisher_scores, nearest_stored
from quantriage.diagnose.ladder import rung_correlations, sensitivity_records
from quantriage.diagnose.swap import swap_kl
from quantriage.errors import BudgetError
from quantriage.numerics.schemes import Scheme
from quantriage.plan.targets import menu, sites_for
from quantriage.records.run_dir import (
    CORRELATIONS,
    DIAGNOSIS,
    LOCK,
    SENSITIVITY,
    SITES,
    SUMMARY,
    RunDir,
)
from quantriage.records.types import Finding, RunSummary, Sensitivity, SiteInfo
from quantriage.report.render import render
from quantriage.stream.compute import exact
from quantriage.stream.progress import Progress, silent
from quantriage.stream.states import StateStore
from quantriage.stream.stream import Stream, StreamSettings
from quantriage.workflows.export import scale_dtype
from quantriage.workflows.opened import OpenedModel, open_model
from quantriage.workflows.options import SensitivityOptions
from quantriage.workflows.stages import StageClock

Menus = dict[str, tuple[Scheme, ...]]


def menus_for(opened: OpenedModel, target: str, specs: tuple[str, ...] = ()) -> tuple[Menus, list[Finding]]:
    """Schemes to score for each site: the target's menu, or the given ones where they divide the width."""
    scales = scale_dtype(opened.checkpoint)
    menus: Menus = {}
    findings: list[Finding] = []
    for site in sites_for(target, opened.map.infos()):
        if specs:
            schemes = tuple(s for s in (Scheme.named(t, scales) for t in specs) if _divides(s, site))
        else:
            schemes = menu(target, site.shape, scales)
        menus[site.name] = schemes
        if not schemes:
            findings.append(
                Finding(
                    severity="warning",
                    code="site-left-dense",
                    text=f"no scheme of the menu fits a width of {site.shape[1]}; left in full precision",
                    site=site.name,
                )
            )
    if not any(menus.values()):
        raise BudgetError("no site of this model fits any scheme asked for; try schemes per channel")
    return menus, findings


def _divides(scheme: Scheme, site: SiteInfo) -> bool:
    try:
        scheme.group_width(site.shape[1])
    except BudgetError:
        return False
    return True


def score(
    opened: OpenedModel,
    tokens: TokenSet,
    menus: Menus,
    spill: Path,
    state_bytes: int,
    seed: int,
    draws: int = 1,
    progress: Progress = silent,
) -> FisherScores:
    """Fisher scores of every site and scheme in `menus`."""
    stream = Stream(
        opened.model,
        opened.map.sites,
        tokens,
        opened.compute,
        StateStore(spill, state_bytes),
        StreamSettings.for_length(tokens.length),
        progress,
    )
    return fisher_scores(stream, menus, seed, draws, opened.map.ends)


def measure_swaps(
    opened: OpenedModel,
    tokens: TokenSet,
    menus: Menus,
    spill: Path,
    state_bytes: int,
    progress: Progress = silent,
) -> dict[Key, float]:
    """True swap KL of every site and scheme in `menus`, in float32."""
    stream = Stream(
        opened.model,
        opened.map.sites,
        tokens,
        exact(str(opened.compute.device)),
        StateStore(spill, state_bytes),
        StreamSettings.for_length(tokens.length),
        progress,
    )
    return swap_kl(stream, opened.map.sites, menus, nearest_stored)


def base_schemes(menus: Menus) -> dict[str, Scheme]:
    """The scheme that a site's diagnosis is stated for: 4 bits (or the fewest), groups of 64 or nearest."""

    def rank(scheme: Scheme) -> tuple[int, int, bool]:
        width = getattr(scheme.granularity, "size", 1 << 16)
        return abs(scheme.grid.bits - 4), abs(width - 64), scheme.grid.symmetric

    return {name: min(schemes, key=rank) for name, schemes in menus.items() if schemes}


def write_ladder(
    run: RunDir, opened: OpenedModel, scores: FisherScores, menus: Menus, swaps: dict[Key, float] | None
) -> list[Sensitivity]:
    """Write sites, sensitivity, correlations and diagnosis records."""
    records = sensitivity_records(opened.map, scores, swaps)
    run.write_many(SITES, [info for info in opened.map.infos() if info.name in menus])
    run.write_many(SENSITIVITY, records)
    run.write_many(CORRELATIONS, rung_correlations(records))
    predicted = {key: kl for key, kl in scores.kl.items() if menus.get(key[0])}
    run.write_many(DIAGNOSIS, diagnose_sites(opened.map, base_schemes(menus), predicted))
    return records


def sensitivity(options: SensitivityOptions, progress: Progress = silent) -> RunSummary:
    """Score every site of a model; records, lock and report go to `options.run`."""
    clock = StageClock()
    run = RunDir(options.run)
    spill = options.run / "spill"
    with clock.stage("open"):
        opened = open_model(options.model, options.device)
        tokens = opened.tokens(
            options.calibration, options.sequences, options.length, "calibration", options.seed
        )
        menus, findings = menus_for(opened, options.target, options.schemes)
    with clock.stage("fisher"):
        scores = score(
            opened, tokens, menus, spill, options.state_bytes, options.seed, options.draws, progress
        )
    swaps = None
    if options.exhaustive:
        with clock.stage("swap"):
            swaps = measure_swaps(opened, tokens, menus, spill, options.state_bytes, progress)
    write_ladder(run, opened, scores, menus, swaps)
    run.write(
        LOCK,
        opened.lock(
            command="sensitivity",
            data=[tokens.identity("calibration")],
            seed=options.seed,
            settings={"target": options.target, "schemes": " ".join(options.schemes), "draws": options.draws},
        ),
    )
    summary = RunSummary(
        title=f"Sensitivity of {opened.label}",
        model=opened.source,
        target=options.target,
        stages=tuple(clock.stages),
        findings=tuple(findings),
    )
    run.write(SUMMARY, summary)
    render(options.run)
    return summary
