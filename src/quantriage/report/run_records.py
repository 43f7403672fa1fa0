"""All records of a run folder, read once: what the sections of a report may look at.

A run that stopped early or only measured sensitivity has some of them; a missing one is None or empty and
its section is left out. An invalid one is an error: a report must not quietly drop what it cannot read.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from quantriage.errors import QuantriageError
from quantriage.records.advice import Advice
from quantriage.records.bench import Bench
from quantriage.records.calibration import (
    CHECK,
    MATRIX,
    SET,
    CalibrationCheck,
    CalibrationMatrix,
    CalibrationSet,
)
from quantriage.records.diagnosis import Attribution, Bisection, CandidateDiagnosis, Lint, Repair, Split
from quantriage.records.outliers import Outliers
from quantriage.records.run_dir import (
    ADVICE,
    ATTRIBUTION,
    BENCH,
    BISECTION,
    CANDIDATE,
    CORRELATIONS,
    DIAGNOSIS,
    LINT,
    LOCK,
    MIXES,
    OUTLIERS,
    PLAN,
    PROOF,
    QUANTIZED,
    REPAIR,
    SENSITIVITY,
    SITES,
    SPLIT,
    SUMMARY,
    SWEEP,
    RunDir,
)
from quantriage.records.sweep import SweepRun
from quantriage.records.tasks import TASKS, TaskRun
from quantriage.records.types import (
    Diagnosis,
    EvalResult,
    Lock,
    MixMeasurement,
    Plan,
    Proof,
    QuantizedSite,
    Record,
    RungCorrelation,
    RunSummary,
    Sensitivity,
    SiteInfo,
)

R = TypeVar("R", bound=Record)
_NAMES = (
    *(SUMMARY, PLAN, LOCK, SITES, SENSITIVITY, CORRELATIONS, DIAGNOSIS, MIXES, QUANTIZED, PROOF),
    *(LINT, ATTRIBUTION, BISECTION, SPLIT, CANDIDATE, REPAIR),
    *(SET, MATRIX, CHECK),
    *(BENCH, ADVICE),
    *(OUTLIERS, SWEEP, TASKS),
)


@dataclass(frozen=True)
class RunRecords:
    """What a run folder holds. Tuples are empty and singles None where a record was not written."""

    summary: RunSummary | None
    plan: Plan | None
    plan_text: str
    lock: Lock | None
    sites: tuple[SiteInfo, ...]
    sensitivity: tuple[Sensitivity, ...]
    correlations: tuple[RungCorrelation, ...]
    diagnosis: tuple[Diagnosis, ...]
    mixes: tuple[MixMeasurement, ...]
    quantized: tuple[QuantizedSite, ...]
    proof: Proof | None
    lint: Lint | None
    attribution: Attribution | None
    bisection: Bisection | None
    split: Split | None
    candidate: CandidateDiagnosis | None
    repair: Repair | None
    calibration_set: CalibrationSet | None
    calibration_matrix: CalibrationMatrix | None
    calibration_check: CalibrationCheck | None
    bench: Bench | None
    advice: Advice | None
    outliers: Outliers | None
    sweep: SweepRun | None
    tasks: TaskRun | None

    @cached_property
    def site_by_name(self) -> dict[str, SiteInfo]:
        """Sites by checkpoint name."""
        return {site.name: site for site in self.sites}

    @cached_property
    def of_diagnosis(self) -> bool:
        """Whether this run only looked at a model or a checkpoint, and so had nothing to ship or to prove."""
        diagnosis = (self.lint, self.attribution, self.bisection, self.split, self.candidate, self.repair)
        calibration = (self.calibration_set, self.calibration_matrix, self.calibration_check)
        laboratory = (self.outliers, self.sweep, self.bench, self.advice)
        return any(record is not None for record in (*diagnosis, *calibration, *laboratory))

    @cached_property
    def names(self) -> tuple[str | None, str | None]:
        """The candidate under diagnosis and its reference, where a record names them."""
        for found in (self.candidate, self.lint):
            if found is not None:
                return found.candidate, found.reference
        return (self.repair.candidate if self.repair else None), None

    @cached_property
    def layout(self) -> str:
        """How the candidate under diagnosis is stored; empty where no record says."""
        found = self.candidate or self.lint
        return found.layout if found else ""

    @cached_property
    def shipped(self) -> EvalResult | None:
        """The evaluation of what was shipped: the saved candidate, else the one the verdict names."""
        results = self.proof.results if self.proof else ()
        named = self.summary.verdict.shipped if self.summary and self.summary.verdict else None
        candidates = [r for r in results if r.kind == "candidate"] or [r for r in results if r.label == named]
        return candidates[0] if candidates else None


def read_records(run_dir: Path) -> RunRecords:
    """Read what is there; raises QuantriageError if nothing is, or if a record is invalid."""
    run = RunDir.existing(run_dir)
    if not any(run.has(name) for name in _NAMES):
        raise QuantriageError(f"{run_dir}: no records in it; expected at least one of {', '.join(_NAMES)}")
    return RunRecords(
        summary=_one(run, SUMMARY, RunSummary),
        plan=_one(run, PLAN, Plan),
        plan_text=run.file(PLAN).read_text(encoding="utf-8") if run.has(PLAN) else "",
        lock=_one(run, LOCK, Lock),
        sites=_many(run, SITES, SiteInfo),
        sensitivity=_many(run, SENSITIVITY, Sensitivity),
        correlations=_many(run, CORRELATIONS, RungCorrelation),
        diagnosis=_many(run, DIAGNOSIS, Diagnosis),
        mixes=_many(run, MIXES, MixMeasurement),
        quantized=_many(run, QUANTIZED, QuantizedSite),
        proof=_one(run, PROOF, Proof),
        lint=_one(run, LINT, Lint),
        attribution=_one(run, ATTRIBUTION, Attribution),
        bisection=_one(run, BISECTION, Bisection),
        split=_one(run, SPLIT, Split),
        candidate=_one(run, CANDIDATE, CandidateDiagnosis),
        repair=_one(run, REPAIR, Repair),
        calibration_set=_one(run, SET, CalibrationSet),
        calibration_matrix=_one(run, MATRIX, CalibrationMatrix),
        calibration_check=_one(run, CHECK, CalibrationCheck),
        bench=_one(run, BENCH, Bench),
        advice=_one(run, ADVICE, Advice),
        outliers=_one(run, OUTLIERS, Outliers),
        sweep=_one(run, SWEEP, SweepRun),
        tasks=_one(run, TASKS, TaskRun),
    )


def _one(run: RunDir, name: str, kind: type[R]) -> R | None:
    return run.read(name, kind) if run.has(name) else None


def _many(run: RunDir, name: str, kind: type[R]) -> tuple[R, ...]:
    return tuple(run.read_many(name, kind)) if run.has(name) else ()
