"""All records of a run folder, read once: what the sections of a report may look at.

A run that stopped early or only measured sensitivity has some of them; a missing one is None or empty and
its section is left out. An invalid one is an error: a report must not quietly drop what it cannot read.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from quantriage.errors import QuantriageError
from quantriage.records.run_dir import (
    CORRELATIONS,
    DIAGNOSIS,
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
    Diagnosis,
    EvalResult,
    Lock,
    MixMeasurement,
    Plan,
    Proof,
    QuantizedSite,
    RungCorrelation,
    RunSummary,
    Sensitivity,
    SiteInfo,
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

    @cached_property
    def site_by_name(self) -> dict[str, SiteInfo]:
        """Sites by checkpoint name."""
        return {site.name: site for site in self.sites}

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
    names = (SUMMARY, PLAN, LOCK, SITES, SENSITIVITY, CORRELATIONS, DIAGNOSIS, MIXES, QUANTIZED, PROOF)
    if not any(run.has(name) for name in names):
        raise QuantriageError(f"{run_dir}: no records in it; expected at least one of {', '.join(names)}")
    return RunRecords(
        summary=run.read(SUMMARY, RunSummary) if run.has(SUMMARY) else None,
        plan=run.read(PLAN, Plan) if run.has(PLAN) else None,
        plan_text=run.file(PLAN).read_text(encoding="utf-8") if run.has(PLAN) else "",
        lock=run.read(LOCK, Lock) if run.has(LOCK) else None,
        sites=tuple(run.read_many(SITES, SiteInfo)) if run.has(SITES) else (),
        sensitivity=tuple(run.read_many(SENSITIVITY, Sensitivity)) if run.has(SENSITIVITY) else (),
        correlations=tuple(run.read_many(CORRELATIONS, RungCorrelation)) if run.has(CORRELATIONS) else (),
        diagnosis=tuple(run.read_many(DIAGNOSIS, Diagnosis)) if run.has(DIAGNOSIS) else (),
        mixes=tuple(run.read_many(MIXES, MixMeasurement)) if run.has(MIXES) else (),
        quantized=tuple(run.read_many(QUANTIZED, QuantizedSite)) if run.has(QUANTIZED) else (),
        proof=run.read(PROOF, Proof) if run.has(PROOF) else None,
    )
