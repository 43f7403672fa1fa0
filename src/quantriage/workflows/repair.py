"""`repair`: quantize a candidate's culprits again in its own file, and prove the saved file better.

open -> attribution (unless the run folder has one) -> round and choose -> write -> compare byte for byte and
evaluate. Only what is named a culprit changes; that is checked on the file, not believed.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantriage.checkpoint.new_folder import check_free
from quantriage.checkpoint.same_bytes import differing
from quantriage.data.overlap import check_files, check_overlap
from quantriage.data.token_set import TokenSet
from quantriage.diagnose.attribution import bounded
from quantriage.diagnose.hybrid_runs import StateRoom
from quantriage.errors import CheckpointError, QuantriageError, UsageError
from quantriage.evaluate.intervals import mean_interval
from quantriage.formats.rewrite import Replacement
from quantriage.formats.rewriters import rewriter_of
from quantriage.plan.targets import target_named
from quantriage.records.diagnosis import Attribution, Repair
from quantriage.records.digest import file_digest
from quantriage.records.run_dir import (
    ATTRIBUTION,
    LOCK,
    REPAIR,
    REPAIR_LOCK,
    REPAIR_SUMMARY,
    SUMMARY,
    RunDir,
)
from quantriage.records.types import Lock, RunSummary
from quantriage.report.render import render
from quantriage.stream.compute import exact
from quantriage.stream.progress import Progress, silent
from quantriage.workflows.attribute import attribute, prepare
from quantriage.workflows.evaluate import refuse_other_shape
from quantriage.workflows.meter import Meter
from quantriage.workflows.opened import OpenedModel, open_model
from quantriage.workflows.options import RepairOptions
from quantriage.workflows.prove import sequence_kl
from quantriage.workflows.repair_choice import Chosen, Limits, check_names, choose_repairs, culprits_of
from quantriage.workflows.stages import StageClock

COMMAND = "repair"
SPILL = "spill"
_LOOKED_AT = 16  # windows of the calibration text for the attribution


@dataclass(frozen=True)
class _Subjects:
    """What a repair works on."""

    options: RepairOptions
    reference: OpenedModel
    candidate: OpenedModel
    calibration: TokenSet
    evaluation: TokenSet
    progress: Progress

    @property
    def room(self) -> StateRoom:
        """Where states go."""
        return StateRoom(self.options.run_folder / SPILL, self.options.state_bytes)


def repair(options: RepairOptions, progress: Progress = silent) -> Repair:
    """Write the repaired checkpoint to `options.out` and the proof to the run folder."""
    clock = StageClock()
    check_free(options.out)
    if target_named(options.target).stored == "gguf":
        raise UsageError("--target says what loads integer formats; the types of a GGUF candidate need none")
    with clock.stage("open"):
        subjects = _open(options, progress)
        rewriter = rewriter_of(subjects.candidate.checkpoint)
        ground = prepare(
            subjects.reference,
            subjects.candidate.checkpoint,
            subjects.calibration,
            subjects.room,
            progress,
        )
        check_names(options.units, ground)
    with clock.stage("attribution"):
        names = options.units or culprits_of(_attribution(subjects))
        if not names:
            raise QuantriageError(
                f"{options.candidate}: no unit is judged damaged or badly done, so there is nothing to do; "
                "name units with --units to have them rounded again"
            )
    with clock.stage("rounding"):
        limits = Limits(options.extra_bpw, options.target)
        chosen = choose_repairs(
            ground, rewriter, list(dict.fromkeys(names)), subjects.calibration, limits, options.seed
        )
        if not chosen.replacements:
            reasons = "; ".join(f"{f.site}: {f.text}" for f in chosen.findings[:3])
            raise QuantriageError(f"{options.candidate}: nothing can be repaired: {reasons}")
    with clock.stage("write"):
        made = rewriter.write(chosen.replacements, options.out)
    with clock.stage("proof"):
        record = _prove(subjects, chosen, made)
    _write_records(subjects, record, clock)
    shutil.rmtree(options.run_folder / SPILL, ignore_errors=True)
    return record


def _open(options: RepairOptions, progress: Progress) -> _Subjects:
    check_files(options.calibration, options.text)
    reference = open_model(options.reference, options.device)
    candidate = open_model(options.candidate, options.device)
    refuse_other_shape(reference, candidate)
    calibration = reference.tokens(
        options.calibration, options.sequences, options.length, "calibration", options.seed
    )
    evaluation = reference.tokens(
        options.text, options.evaluation_sequences, options.evaluation_length, "evaluation"
    )
    tokenizer = reference.checkpoint.tokenizer()
    check_overlap(calibration, evaluation, lambda ids: str(tokenizer.decode(list(ids))))
    return _Subjects(options, reference, candidate, calibration, evaluation, progress)


def _attribution(subjects: _Subjects) -> Attribution:
    """The run folder's, if it is of this candidate; else made within the time budget and kept there."""
    options, run = subjects.options, RunDir(subjects.options.run_folder)
    if run.has(ATTRIBUTION):
        locks = (run.read(name, Lock) for name in (LOCK, REPAIR_LOCK) if run.has(name))
        digest = next((d for lock in locks if (d := lock.settings.get("candidate_digest"))), None)
        if digest not in (None, subjects.candidate.checkpoint.digest()):
            raise UsageError(
                f"{run.path}: holds the attribution of another candidate; give another --run, or --units"
            )
        return run.read(ATTRIBUTION, Attribution)
    found = attribute(
        subjects.reference,
        subjects.candidate.checkpoint,
        subjects.calibration.take(min(_LOOKED_AT, subjects.calibration.sequences)),
        options.budget_seconds,
        options.run_folder / SPILL,
        options.state_bytes,
        options.seed,
        subjects.progress,
    )
    run.write(ATTRIBUTION, found)
    return found


def _prove(subjects: _Subjects, chosen: Chosen, made: Path) -> Repair:
    """What changed on disk, and the KL of both files as saved, on text that nothing before has seen."""
    options, candidate = subjects.options, subjects.candidate
    unchanged, changed = differing(candidate.checkpoint.path, made)
    _check_changed(chosen.replacements, changed)
    repaired = open_model(str(made), options.device)
    reference = subjects.reference
    meter = Meter(
        reference.model,
        reference.map,
        subjects.evaluation,
        exact(options.device),
        options.run_folder / SPILL,
        options.run_folder / SPILL,
        options.state_bytes,
        subjects.progress,
        "proof",
    )
    before = [bounded(v) for v in sequence_kl(meter.model_scores(candidate.model, candidate.map))]
    after = [bounded(v) for v in sequence_kl(meter.model_scores(repaired.model, repaired.map))]
    difference = mean_interval([a - b for a, b in zip(after, before, strict=True)])
    return Repair(
        candidate=options.candidate,
        out=str(options.out),
        units=chosen.units,
        bytes_before=candidate.checkpoint.file_bytes,
        bytes_after=repaired.checkpoint.file_bytes,
        kl_before=mean_interval(before),
        kl_after=mean_interval(after),
        tensors_unchanged=unchanged,
        difference=difference,
        proven=difference.high < 0,
        opens=str(made),
        findings=chosen.findings,
    )


def _check_changed(replacements: Sequence[Replacement], changed: Sequence[str]) -> None:
    """Raise CheckpointError if a tensor changed that was not to be replaced."""
    expected = {name for item in replacements for name in (*item.tensors, *item.removed)}
    others = sorted(set(changed) - expected)
    if others:
        raise CheckpointError(f"{others[0]!r} changed and was not to: the disk or this program is at fault")


def _write_records(subjects: _Subjects, record: Repair, clock: StageClock) -> None:
    options, reference = subjects.options, subjects.reference
    run = RunDir(options.run_folder)
    run.write(REPAIR, record)
    lock_name, summary_name = _places(run)
    run.write(
        lock_name,
        reference.lock(
            command=COMMAND,
            data=[
                subjects.calibration.identity("calibration"),
                subjects.evaluation.identity("evaluation"),
            ],
            seed=options.seed,
            settings={
                "candidate": options.candidate,
                "candidate_digest": subjects.candidate.checkpoint.digest(),
                "units": ", ".join(unit.unit for unit in record.units),
                "extra_bpw": options.extra_bpw,
                "target": options.target,
            },
            output_files={
                str(path.relative_to(options.out)): file_digest(path)
                for path in sorted(options.out.rglob("*"))
                if path.is_file()
            },
        ),
    )
    run.write(
        summary_name,
        RunSummary(
            title=f"Repair of {subjects.candidate.label}",
            model=options.reference,
            target="",
            budget=None,
            verdict=None,
            stages=tuple(clock.stages),
            findings=record.findings,
        ),
    )
    render(options.run_folder)


def _places(run: RunDir) -> tuple[str, str]:
    """Where lock and summary go: a folder of another command keeps those that its records came about by."""
    others = run.has(LOCK) and run.read(LOCK, Lock).command != COMMAND
    return (REPAIR_LOCK, REPAIR_SUMMARY) if others else (LOCK, SUMMARY)
