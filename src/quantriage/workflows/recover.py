"""`recover`: find what quantization hurts, spend the bits there, and prove the result on the saved file.

sensitivity -> contest -> rounding -> selection on held-out text -> export -> proof on the saved directory.
Each stage commits to the run's ledger; a killed run started again with the same settings goes on from there
and ends in the same bytes.
"""

import shutil
from dataclasses import replace

import msgspec

from quantriage.errors import StorageError, UsageError
from quantriage.evaluate.intervals import mean_interval
from quantriage.formats.bank import CandidateBank
from quantriage.numerics.schemes import Scheme
from quantriage.plan.mixes import MixKind, NamedMix, plan_of
from quantriage.plan.targets import menu, refuse_budget, target_named
from quantriage.plan.units import Unit, form_units
from quantriage.records.ledger import Ledger
from quantriage.records.run_dir import (
    LEARNING,
    LOCK,
    MIXES,
    PLAN,
    PROOF,
    QUANTIZED,
    SENSITIVITY,
    SITES,
    SUMMARY,
    RunDir,
)
from quantriage.records.types import (
    Finding,
    MixMeasurement,
    QuantizedSite,
    RunSummary,
    Sensitivity,
)
from quantriage.report.render import render
from quantriage.stream.progress import Progress, silent
from quantriage.workflows.budget import bits_that_fit
from quantriage.workflows.export_target import refuse_for
from quantriage.workflows.fill_bank import Wanted
from quantriage.workflows.fold import fold_channels
from quantriage.workflows.learn_rounding import learn_rounding
from quantriage.workflows.learn_scales import learn_scales, learning_finding
from quantriage.workflows.opened import open_model, started_dtype
from quantriage.workflows.options import RecoverOptions
from quantriage.workflows.prove import sequence_kl
from quantriage.workflows.recover_run import RecoverRun, frozen_settings, read_tokens
from quantriage.workflows.rounding import LEDGER, SPILL, round_candidates
from quantriage.workflows.select import Chosen, Contest, enter, reconsider, rounded_predictions, select
from quantriage.workflows.sensitivity import (
    Menus,
    base_schemes,
    measure_swaps,
    menus_for,
    score,
    write_ladder,
)
from quantriage.workflows.ship import ship_and_prove
from quantriage.workflows.stages import StageClock


def recover(options: RecoverOptions, progress: Progress = silent) -> RunSummary:
    """Run all stages; the checkpoint is in `options.out`, records and report in the run folder."""
    clock = StageClock()
    if options.out.exists() and any(options.out.iterdir()) and not options.replace:
        raise StorageError(f"{options.out}: exists and is not empty; choose another place or use --replace")
    refuse_budget(options.target)
    if options.learn and target_named(options.target).stored == "gguf":
        raise UsageError("--learn moves the scales of integer schemes; GGUF types keep theirs, leave it out")
    with clock.stage("open"):
        opened = open_model(options.model, options.device, started_dtype(options.run_folder / LEDGER))
        if options.memory_gb is not None:
            bits = bits_that_fit(options.memory_gb, options.context, options.target, opened)
            options = replace(options, bpw=bits, memory_gb=None, context=0)
        menus, _ = menus_for(opened, options.target)
        refuse_for(options.target, opened, {name: schemes[0] for name, schemes in menus.items() if schemes})
        tokens, findings = read_tokens(options, opened)
        run = RecoverRun(
            options,
            opened,
            opened,
            tokens,
            RunDir(options.run_folder),
            Ledger(options.run_folder / LEDGER, frozen_settings(options, opened, tokens)),
            clock,
            progress,
        )
    sites = [name for name, schemes in menus.items() if schemes]
    scaled, folded = fold_channels(options, opened, tokens.calibration, sites, run.ledger, clock, progress)
    run = replace(run, scaled=scaled)
    findings.extend(folded)
    with clock.stage("sensitivity"):
        predicted = _predictions(run, findings)
        contest = enter(
            _units(run, predicted), options.target, run.budget_bytes, options.mixes, run.scale_dtype
        )
    with clock.stage("rounding"):
        wanted = {name: Wanted(schemes, options.method) for name, schemes in contest.schemes_wanted().items()}
        bank, rounded = round_candidates(
            scaled,
            tokens.calibration,
            wanted,
            run.folder,
            run.ledger,
            options.seed,
            options.state_bytes,
            progress,
        )
    with clock.stage("selection"):
        predicted = rounded_predictions(predicted, rounded, run.scale_dtype)
        contest = reconsider(contest, _units(run, predicted), predicted, options.mixes)
        chosen = _select(run, contest, bank)
    shipped = bank
    if options.learn_rounding:
        with clock.stage("learned rounding"):
            shipped, learned = _learn_rounding(run, chosen, bank)
        findings.extend(learned)
    if options.learn:
        with clock.stage("learning"):
            shipped, points = learn_scales(run, chosen.winner.schemes, shipped)
        run.records.write_many(LEARNING, points)
        findings.append(learning_finding(points))
    with clock.stage("proof"):
        winner, files, proof, verdict = ship_and_prove(run, chosen, contest, bank, shipped, findings)
    _write_records(run, winner, files, rounded)
    summary = RunSummary(
        title=f"{opened.label} at {verdict.bits_per_weight:.2f} bits per weight",
        model=opened.source,
        target=options.target,
        budget=options.bpw,
        verdict=verdict,
        stages=tuple(clock.stages),
        findings=(*findings, *_shipped_findings(winner, rounded)),
    )
    run.records.write(PROOF, proof)
    run.records.write(SUMMARY, summary)
    render(run.folder)
    shutil.rmtree(run.folder / SPILL, ignore_errors=True)
    return summary


Predictions = dict[tuple[str, Scheme], float]


def _units(run: RecoverRun, predicted: Predictions) -> tuple[Unit, ...]:
    """Fused units with the target's schemes that have a prediction."""
    return form_units(run.infos, lambda shape: menu(run.options.target, shape, run.scale_dtype), predicted)


def _predictions(run: RecoverRun, findings: list[Finding]) -> Predictions:
    """Fisher scores of plain rounding for every site and scheme, from the ladder's records."""
    options, opened = run.options, run.scaled
    menus, more = menus_for(opened, options.target)
    findings.extend(more)
    if "sensitivity" not in run.ledger.completed():
        scores = score(
            opened,
            run.tokens.sensitivity,
            menus,
            run.folder / SPILL,
            options.state_bytes,
            options.seed,
            progress=run.progress,
        )
        swaps = None
        if options.exhaustive:
            base: Menus = {name: (scheme,) for name, scheme in base_schemes(menus).items()}
            swaps = measure_swaps(
                opened, run.tokens.sensitivity, base, run.folder / SPILL, options.state_bytes, run.progress
            )
        write_ladder(run.records, opened, scores, menus, swaps)
        run.ledger.commit("sensitivity", "")
    return {
        (record.site, Scheme.named(record.scheme, run.scale_dtype)): record.fisher
        for record in run.records.read_many(SENSITIVITY, Sensitivity)
        if record.fisher is not None
    }


def _select(run: RecoverRun, contest: Contest, bank: CandidateBank) -> Chosen:
    """Measure and choose, or take the choice an earlier try committed."""
    meter = run.meter(run.tokens.selection, exactly=False, stage="measure")
    done = run.ledger.completed().get("selection")
    scales = run.scale_dtype
    if done is None:
        chosen = select(contest, meter, bank, run.infos, run.options.swaps, run.progress)
        payload = {
            "label": chosen.winner.label,
            "kind": chosen.winner.kind,
            "schemes": {n: None if s is None else str(s) for n, s in chosen.winner.schemes.items()},
            "bytes": chosen.winner.bytes,
            "predicted_kl": chosen.winner.predicted_kl,
        }
        run.records.write_many(MIXES, chosen.measurements)
        run.ledger.commit("selection", "", payload)
        return chosen
    stored = msgspec.convert(done.payload, _StoredMix)
    schemes = {n: None if s is None else Scheme.named(s, scales) for n, s in stored.schemes.items()}
    winner = NamedMix(stored.label, stored.kind, schemes, stored.bytes, stored.predicted_kl)
    return Chosen(winner, tuple(run.records.read_many(MIXES, MixMeasurement)))


def _learn_rounding(
    run: RecoverRun, chosen: Chosen, bank: CandidateBank
) -> tuple[CandidateBank, tuple[Finding, ...]]:
    """The winner learned, if that lowers the KL on the text that it was chosen by; what to say of it."""
    options, schemes = run.options, chosen.winner.schemes
    learned, finding = learn_rounding(
        run.scaled,
        run.tokens.calibration,
        schemes,
        bank,
        run.folder,
        run.ledger,
        options.learn_rounding,
        options.seed,
        options.state_bytes,
        run.progress,
    )
    done = run.ledger.completed().get(_JUDGED)
    if done is None:
        meter = run.meter(run.tokens.selection, exactly=False, stage="measure")
        after = mean_interval(sequence_kl(meter.mix(learned, schemes))).value
        run.ledger.commit(_JUDGED, "", {"kl": after})
    else:
        after = msgspec.convert(done.payload["kl"], float)
    before = next(m.kl.value for m in chosen.measurements if m.chosen)
    kept = "kept" if after < before else "not lower, so the rounding before is kept"
    text = f"KL on the selection text {before:.4f} before learned rounding, {after:.4f} after: {kept}"
    said = Finding(severity="info", code="learned-rounding", text=text)
    return (learned if after < before else bank), (finding, said)


_JUDGED = "learned-rounding-judged"


class _StoredMix(msgspec.Struct, frozen=True):
    label: str
    kind: MixKind
    schemes: dict[str, str | None]
    bytes: int
    predicted_kl: float | None


def _write_records(
    run: RecoverRun, winner: NamedMix, files: dict[str, str], rounded: list[QuantizedSite]
) -> None:
    options, opened, tokens = run.options, run.opened, run.tokens
    plan = plan_of(
        winner,
        run.infos,
        options.target,
        f"recover at {options.bpw:.4g} bits: {winner.label}",
        options.method,
    )
    run.records.write(PLAN, plan)
    run.records.write_many(SITES, run.infos)
    shipped = {(name, str(scheme)) for name, scheme in winner.schemes.items()}
    run.records.write_many(QUANTIZED, [r for r in rounded if (r.site, r.scheme) in shipped])
    lock = opened.lock(
        command="recover",
        data=[
            tokens.calibration.identity("calibration"),
            tokens.selection.identity("selection"),
            tokens.evaluation.identity("evaluation"),
        ],
        seed=options.seed,
        settings={
            "bpw": options.bpw,
            "target": options.target,
            "mixes": options.mixes,
            "swaps": options.swaps,
            "learn": options.learn,
            "fold": options.fold,
            "learn_rounding": options.learn_rounding,
        },
        output_files=files,
    )
    run.records.write(LOCK, lock)


def _shipped_findings(winner: NamedMix, rounded: list[QuantizedSite]) -> list[Finding]:
    shipped = {(name, str(scheme)) for name, scheme in winner.schemes.items()}
    return [f for r in rounded if (r.site, r.scheme) in shipped for f in r.findings]
