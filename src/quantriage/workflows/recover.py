"""`recover`: find what quantization hurts, spend the bits there, and prove the result on the saved file.

sensitivity -> contest -> rounding -> selection on held-out text -> export -> proof on the saved directory.
Each stage commits to the run's ledger; a killed run started again with the same settings goes on from there
and ends in the same bytes.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from quantriage.data.overlap import check_files, check_overlap
from quantriage.data.token_set import TokenSet
from quantriage.errors import StorageError
from quantriage.formats.bank import CandidateBank
from quantriage.model.site import Site
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme
from quantriage.plan.mixes import MixKind, NamedMix, plan_of
from quantriage.plan.sizes import bits_per_weight, budget_bytes_for
from quantriage.plan.targets import menu, target_named
from quantriage.plan.units import form_units
from quantriage.records.ledger import Ledger
from quantriage.records.lock import make_lock
from quantriage.records.run_dir import (
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
    EvalResult,
    Finding,
    MixMeasurement,
    Proof,
    QuantizedSite,
    RunSummary,
    Sensitivity,
    SiteInfo,
    Verdict,
)
from quantriage.report.render import render
from quantriage.stream.compute import choose_compute, exact
from quantriage.stream.progress import Progress, silent
from quantriage.workflows.export import export, scale_dtype
from quantriage.workflows.fill_bank import Wanted
from quantriage.workflows.meter import Meter
from quantriage.workflows.opened import OpenedModel, open_model
from quantriage.workflows.options import RecoverOptions
from quantriage.workflows.prove import Rival, assemble_proof, evaluate_rival, evaluate_saved, noise_floor
from quantriage.workflows.rounding import LEDGER, SPILL, round_candidates
from quantriage.workflows.select import Chosen, Contest, enter, select
from quantriage.workflows.sensitivity import (
    Menus,
    base_schemes,
    measure_swaps,
    menus_for,
    score,
    write_ladder,
)
from quantriage.workflows.stages import StageClock
from quantriage.workflows.verdict import judge

CACHE = "cache"
_SENSITIVITY_LENGTH = 256
_UNIFORMS_PROVEN = 3  # best uniform baselines that go into the proof beside the shipped mix


@dataclass(frozen=True)
class _Tokens:
    """The four token sets of a run; none overlaps the evaluation text."""

    calibration: TokenSet
    sensitivity: TokenSet
    selection: TokenSet
    evaluation: TokenSet


@dataclass(frozen=True)
class _Run:
    """What every stage of a run reads."""

    options: RecoverOptions
    opened: OpenedModel
    tokens: _Tokens
    records: RunDir
    ledger: Ledger
    clock: StageClock
    progress: Progress

    @property
    def folder(self) -> Path:
        return self.options.run_folder

    @property
    def infos(self) -> list[SiteInfo]:
        return [site.info() for site in self.opened.map.sites]

    def meter(self, tokens: TokenSet, exactly: bool, stage: str) -> Meter:
        """Measure on `tokens`, in float32 if `exactly`."""
        compute = exact(self.options.device) if exactly else self.opened.compute
        return Meter(
            self.opened.model,
            self.opened.map,
            tokens,
            compute,
            self.folder / CACHE,
            self.folder / SPILL,
            self.options.state_bytes,
            self.progress,
            stage,
        )


def recover(options: RecoverOptions, progress: Progress = silent) -> RunSummary:
    """Run all stages; the checkpoint is in `options.out`, records and report in the run folder."""
    clock = StageClock()
    if options.out.exists() and any(options.out.iterdir()) and not options.replace:
        raise StorageError(f"{options.out}: exists and is not empty; choose another place or use --replace")
    target_named(options.target)
    with clock.stage("open"):
        opened = open_model(options.model, options.device)
        tokens, findings = _read_tokens(options, opened)
        run = _Run(
            options,
            opened,
            tokens,
            RunDir(options.run_folder),
            Ledger(options.run_folder / LEDGER, _frozen(options, opened, tokens)),
            clock,
            progress,
        )
    with clock.stage("sensitivity"):
        contest = _contest(run, findings)
    with clock.stage("rounding"):
        wanted = {name: Wanted(schemes) for name, schemes in contest.schemes_wanted().items()}
        bank, rounded = round_candidates(
            opened,
            tokens.calibration,
            wanted,
            run.folder,
            run.ledger,
            options.seed,
            options.state_bytes,
            progress,
        )
    with clock.stage("selection"):
        chosen = _select(run, contest, bank)
    with clock.stage("proof"):
        winner, files, proof, verdict = _ship_and_prove(run, chosen, contest, bank, findings)
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


def _frozen(
    options: RecoverOptions, opened: OpenedModel, tokens: _Tokens
) -> dict[str, str | int | float | bool | None]:
    return {
        "verb": "recover",
        "model": opened.checkpoint.digest(),
        "calibration": tokens.calibration.digest,
        "selection": tokens.selection.digest,
        "evaluation": tokens.evaluation.digest,
        "sensitivity": tokens.sensitivity.digest,
        "bpw": options.bpw,
        "target": options.target,
        "mixes": options.mixes,
        "swaps": options.swaps,
        "seed": options.seed,
        "compute": opened.compute.dtype_name,
    }


def _read_tokens(options: RecoverOptions, opened: OpenedModel) -> tuple[_Tokens, list[Finding]]:
    """Calibration and selection are disjoint windows of one draw; evaluation text may share no passage."""
    check_files(options.calibration, options.evaluate)
    windows = opened.tokens(
        options.calibration,
        options.sequences + options.selection_sequences,
        options.length,
        "calibration",
        options.seed,
    )
    calibration, selection = windows.split(options.sequences)
    short = min(options.length, _SENSITIVITY_LENGTH)
    part = calibration.take(min(options.sensitivity_sequences, calibration.sequences))
    sensitivity = TokenSet.of(part.tokens[:, :short], part.source)
    evaluation = opened.tokens(
        options.evaluate, options.evaluation_sequences, options.evaluation_length, "evaluation"
    )
    tokenizer = opened.checkpoint.tokenizer()
    share = check_overlap(windows, evaluation, lambda ids: str(tokenizer.decode(list(ids))))
    findings = []
    if share > 0:
        findings.append(
            Finding(
                severity="info",
                code="text-overlap",
                text=f"{share:.2%} of the evaluation text's passages also occur in the calibration text",
            )
        )
    return _Tokens(calibration, sensitivity, selection, evaluation), findings


def _contest(run: _Run, findings: list[Finding]) -> Contest:
    options, opened = run.options, run.opened
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
    scales = scale_dtype(opened.checkpoint)
    predicted = {
        (record.site, Scheme.parse(record.scheme, scales)): record.fisher
        for record in run.records.read_many(SENSITIVITY, Sensitivity)
        if record.fisher is not None
    }
    units = form_units(run.infos, lambda shape: menu(options.target, shape, scales), predicted)
    budget = budget_bytes_for(options.bpw, run.infos)
    return enter(units, options.target, budget, options.mixes, options.swaps, scales)


def _select(run: _Run, contest: Contest, bank: CandidateBank) -> Chosen:
    """Measure and choose, or take the choice an earlier try committed."""
    meter = run.meter(run.tokens.selection, exactly=False, stage="measure")
    done = run.ledger.completed().get("selection")
    scales = scale_dtype(run.opened.checkpoint)
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
    schemes = {n: None if s is None else Scheme.parse(s, scales) for n, s in stored.schemes.items()}
    winner = NamedMix(stored.label, stored.kind, schemes, stored.bytes, stored.predicted_kl)
    return Chosen(winner, tuple(run.records.read_many(MIXES, MixMeasurement)))


class _StoredMix(msgspec.Struct, frozen=True):
    label: str
    kind: MixKind
    schemes: dict[str, str | None]
    bytes: int
    predicted_kl: float | None


def _ship_and_prove(
    run: _Run, chosen: Chosen, contest: Contest, bank: CandidateBank, findings: list[Finding]
) -> tuple[NamedMix, dict[str, str], Proof, Verdict]:
    """Export the winner and evaluate the saved directory; if it loses to uniform, ship that instead."""
    meter = run.meter(run.tokens.evaluation, exactly=True, stage="prove")
    tokenizer = run.opened.checkpoint.tokenizer()

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids)))

    rivals, rtn_label = _rivals(run, chosen, contest)
    results = [evaluate_rival(meter, rival, bank, decode) for rival in rivals]
    floors = [noise_floor(meter, choose_compute(run.options.device, run.opened.model.hidden_size))]
    winner = chosen.winner
    while True:
        files = _export(run, winner, bank)
        size = (bits_per_weight(winner.bytes, run.infos), winner.bytes)
        label = f"shipped: {winner.label}"
        shipped = evaluate_saved(meter, run.options.out, label, "candidate", size, decode)
        proof = assemble_proof(results, shipped, floors, run.tokens.evaluation.digest)
        verdict = judge(proof, shipped, rtn_label)
        better = _best_uniform(results, rtn_label)
        if verdict.proven or better is None or winner.kind == "uniform":
            return winner, files, proof, verdict
        findings.append(
            Finding(
                severity="warning",
                code="fell-back-to-uniform",
                text=f"{winner.label} won on held-out calibration text but lost to {better.label} on the "
                f"evaluation text ({shipped.kl.value:.4f} against {better.kl.value:.4f}); uniform is shipped",
            )
        )
        winner = next(mix for mix in contest.baselines if mix.label == better.label)


def _best_uniform(results: list[EvalResult], rtn_label: str) -> EvalResult | None:
    uniforms = [r for r in results if r.kind == "uniform" and r.label != rtn_label]
    return min(uniforms, key=lambda r: r.kl.value, default=None)


def _rivals(run: _Run, chosen: Chosen, contest: Contest) -> tuple[list[Rival], str]:
    """The best measured uniform baselines, first-and-last, and plain rounding of the best uniform."""
    measured = {m.label: m.kl.value for m in chosen.measurements}
    uniform = sorted((m for m in contest.baselines if m.kind == "uniform"), key=lambda m: measured[m.label])
    rule = [m for m in contest.baselines if m.kind == "first-and-last"]

    def rival(mix: NamedMix, label: str, rounding: str) -> Rival:
        bpw = bits_per_weight(mix.bytes, run.infos)
        return Rival(label, mix.kind, mix.schemes, bpw, mix.bytes, rounding)  # type: ignore[arg-type]

    rivals = [rival(m, m.label, "gptq") for m in [*uniform[:_UNIFORMS_PROVEN], *rule]]
    rtn_label = ""
    if uniform:
        rtn_label = f"{uniform[0].label} RTN"
        rivals.insert(0, rival(uniform[0], rtn_label, "rtn"))
    return rivals, rtn_label


def _export(run: _Run, mix: NamedMix, bank: CandidateBank) -> dict[str, str]:
    schemes = {name: scheme for name, scheme in mix.schemes.items() if scheme is not None}
    sites: dict[str, Site] = run.opened.map.by_name()

    def banked(name: str) -> QuantizedTensor:
        return bank.read(sites[name].block, name, schemes[name])

    replace = run.options.replace or run.options.out.exists()
    return export(run.opened.model, run.opened.map, schemes, banked, run.options.out, replace)


def _write_records(run: _Run, winner: NamedMix, files: dict[str, str], rounded: list[QuantizedSite]) -> None:
    options, opened, tokens = run.options, run.opened, run.tokens
    plan = plan_of(winner, run.infos, options.target, f"recover at {options.bpw} bits: {winner.label}")
    run.records.write(PLAN, plan)
    run.records.write_many(SITES, run.infos)
    shipped = {(name, str(scheme)) for name, scheme in winner.schemes.items()}
    run.records.write_many(QUANTIZED, [r for r in rounded if (r.site, r.scheme) in shipped])
    lock = make_lock(
        command="recover",
        model_source=opened.source,
        model_digest=opened.checkpoint.digest(),
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
        },
        hardware=opened.hardware(),
        output_files=files,
    )
    run.records.write(LOCK, lock)


def _shipped_findings(winner: NamedMix, rounded: list[QuantizedSite]) -> list[Finding]:
    shipped = {(name, str(scheme)) for name, scheme in winner.schemes.items()}
    return [f for r in rounded if (r.site, r.scheme) in shipped for f in r.findings]
