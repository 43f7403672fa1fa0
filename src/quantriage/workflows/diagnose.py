"""`diagnose`: lint, attribution under a time budget, the three-way split where asked for; a conclusion."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from quantriage.data.text import load_text
from quantriage.data.token_set import TokenSet
from quantriage.diagnose.conclusion import UNMEASURABLE, conclude
from quantriage.errors import ArchitectureError, CheckpointError
from quantriage.evaluate.engines.protocol import AUTO
from quantriage.evaluate.guard import check_guard
from quantriage.records.diagnosis import Attribution, CandidateDiagnosis, GuardFinding, Lint, Split
from quantriage.records.run_dir import ATTRIBUTION, CANDIDATE, LOCK, SITES, SPLIT, SUMMARY, RunDir
from quantriage.records.types import Finding, RunSummary
from quantriage.report.render import render
from quantriage.stream.progress import Progress, silent
from quantriage.workflows.attribute import attribute
from quantriage.workflows.compare import (
    chosen_engines,
    engine_settings,
    prompt_windows,
    refuse_unsuitable,
    split_models,
)
from quantriage.workflows.lint import lint
from quantriage.workflows.opened import OpenedModel, open_model
from quantriage.workflows.options import DiagnoseOptions, LintOptions
from quantriage.workflows.split_legs import SplitBench
from quantriage.workflows.stages import StageClock

ENGINE_SECONDS = 900.0  # time limit of an engine outside this process; `compare` takes others


@dataclass(frozen=True)
class Diagnosed:
    """All records of a diagnosis. attribution: None where the weights do not fit the reference's model."""

    conclusion: CandidateDiagnosis
    lint: Lint
    attribution: Attribution | None
    split: Split | None


def diagnose(options: DiagnoseOptions, progress: Progress = silent) -> Diagnosed:
    """What is wrong with a candidate, in which units, and what it costs; records go to `options.run`.

    A candidate that cannot be measured because of faults that the lint names is diagnosed by those alone.
    Raises CheckpointError for files that cannot be read, UsageError for an engine that cannot read them.
    """
    engines = chosen_engines(options.engine, options.engine_python, ENGINE_SECONDS)
    settings = engine_settings(AUTO, options.engine_option)
    clock = StageClock()
    with clock.stage("lint"):
        asked = LintOptions(candidate=options.candidate, reference=options.reference, run=options.run)
        linted = lint(asked, progress)
    with clock.stage("open"):
        reference = open_model(options.reference, options.device)
        tokens = reference.tokens(options.text, options.sequences, options.length, "evaluation", options.seed)
        prompts = {
            path.name: prompt_windows(reference, path, options.sequences, options.length)
            for path in options.prompts
        }
    with tempfile.TemporaryDirectory(prefix="quantriage-") as folder:
        scratch = Path(folder)
        with clock.stage("attribution"):
            measured = _attribution(options, linted, reference, tokens, scratch, progress)
        candidate, attribution, reason = measured
        split = None
        if candidate is not None and (engines or prompts):
            refuse_unsuitable(engines, candidate)
            with clock.stage("compare"):
                bench = SplitBench(
                    reference, candidate, scratch / "cache", scratch, options.state_bytes, progress
                )
                guards = _guards(options, reference, candidate)
                split = split_models(bench, guards, tokens, prompts, engines, settings)
    found = Diagnosed(conclude(linted, attribution, split, reason), linted, attribution, split)
    if options.run is not None:
        data = (tokens, *prompts.values())
        _write(options, options.run, found, reference, candidate, data, clock, reason)
    return found


def _guards(
    options: DiagnoseOptions, reference: OpenedModel, candidate: OpenedModel
) -> tuple[GuardFinding, ...]:
    """What must be the same before an engine's answer may be compared."""
    tokenizer = reference.checkpoint.tokenizer()
    texts = [load_text(path, tokenizer) for path in (*options.text, *options.prompts)]
    return tuple(check_guard(reference.checkpoint, candidate.checkpoint, texts, options.length))


def _attribution(
    options: DiagnoseOptions,
    linted: Lint,
    reference: OpenedModel,
    tokens: TokenSet,
    scratch: Path,
    progress: Progress,
) -> tuple[OpenedModel | None, Attribution | None, str]:
    """The candidate opened, its attribution, or why there is none, which only faults of its own excuse."""
    errors = [one for one in linted.findings if one.severity == "error"]
    hindrance = next((one for one in errors if one.check in UNMEASURABLE), None)
    if hindrance is not None:
        return None, None, f"{hindrance.check}: {hindrance.evidence}"
    try:
        candidate = open_model(options.candidate, options.device, reference.compute.dtype_name)
        found = attribute(
            reference,
            candidate.checkpoint,
            tokens,
            options.budget,
            scratch / "spill",
            options.state_bytes,
            options.seed,
            progress,
        )
    except (CheckpointError, ArchitectureError) as error:
        if not errors:
            raise
        return None, None, str(error)
    return candidate, found, ""


def _write(
    options: DiagnoseOptions,
    folder: Path,
    found: Diagnosed,
    reference: OpenedModel,
    candidate: OpenedModel | None,
    data: tuple[TokenSet, ...],
    clock: StageClock,
    reason: str,
) -> None:
    run = RunDir(folder)
    if found.attribution is not None:
        run.write(ATTRIBUTION, found.attribution)
    if found.split is not None:
        run.write(SPLIT, found.split)
    run.write(CANDIDATE, found.conclusion)
    run.write_many(SITES, [site.info() for site in reference.map.sites])
    run.write(
        LOCK,
        reference.lock(
            command="diagnose",
            data=[tokens.identity("evaluation") for tokens in data],
            seed=options.seed,
            settings={
                "candidate": options.candidate,
                "candidate_digest": candidate.checkpoint.digest() if candidate is not None else None,
                "budget": options.budget,
                "engines": ", ".join(options.engine),
                "engine_options": ", ".join(options.engine_option),
            },
        ),
    )
    unmeasured = Finding(severity="warning", code="not-measured", text=f"Only linted: {reason}")
    run.write(
        SUMMARY,
        RunSummary(
            title=f"{Path(options.candidate).name} against {reference.label}: diagnosis",
            model=options.reference,
            stages=tuple(clock.stages),
            findings=(unmeasured,) if reason else (),
        ),
    )
    render(folder)
