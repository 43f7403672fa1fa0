"""`calibration check`: does a calibration set cover what production sends, what does it cost, what to add.

Production's windows are dealt in two: one half is compared with calibration and gives what is added, the
other half predicts and, with --fix, measures the KL before and after. What is chosen is never what it is
judged on.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from quantriage.data.build_file import TOKEN_FILE, vocabulary_digest, write_token_file
from quantriage.data.build_production import Production, load_production
from quantriage.data.token_set import TokenSet
from quantriage.diagnose.coverage import Coverage, Texts, cover, prompt_ratios
from quantriage.diagnose.coverage_additions import Additions, choose_additions
from quantriage.diagnose.coverage_samples import TokenReport, compare_tokens
from quantriage.diagnose.coverage_verdict import check_verdict
from quantriage.errors import DataError
from quantriage.evaluate.intervals import mean_interval
from quantriage.numerics.schemes import Scheme
from quantriage.records.calibration import (
    CHECK,
    CalibrationCheck,
    CalibrationSet,
    ExpectedCost,
    PromptCoverage,
    SourceShare,
)
from quantriage.records.run_dir import LOCK, SITES, SUMMARY, RunDir
from quantriage.records.types import Finding, Interval, RunSummary
from quantriage.report.render import render
from quantriage.stream.compute import exact
from quantriage.stream.progress import Progress, silent
from quantriage.workflows.calibration_options import CheckOptions
from quantriage.workflows.calibration_rounding import (
    Rounded,
    predicted_kl,
    round_on,
    schemes_for,
    stream_over,
)
from quantriage.workflows.meter import Meter
from quantriage.workflows.opened import OpenedModel, open_model
from quantriage.workflows.stages import StageClock

FIXED = f"calibration-fixed{TOKEN_FILE}"
BEFORE, AFTER = "calibration", "fixed"
PROMPTS = 40  # kept in the record, worst first


@dataclass(frozen=True)
class _Job:
    """What every step of a check needs."""

    options: CheckOptions
    opened: OpenedModel
    calibration: TokenSet
    looked_at: Production
    held_out: Production
    progress: Progress


def check_set(options: CheckOptions, progress: Progress = silent) -> CalibrationCheck:
    """Test, find the inputs and prompts covered worst, predict the cost, propose additions, perhaps measure.

    Peak memory: one block, three second moments and three factors of each of its inputs, the state budget.
    """
    clock = StageClock()
    run = RunDir(options.run)
    with clock.stage("open"):
        job = _open(options, progress)
        schemes = schemes_for(job.opened, options.scheme, options.method)
    rounded: dict[str, Rounded] = {}
    if not options.statistics_only:
        with clock.stage("round"):
            rounded[BEFORE] = _round(job, schemes, job.calibration, BEFORE)
    with clock.stage("cover"):
        report = compare_tokens(job.calibration.tokens, job.looked_at.tokens.tokens, options.seed)
        coverage = _cover(job, rounded.get(BEFORE))
        most = options.add or job.calibration.sequences
        additions = Additions((), ())
        if coverage.grams.ndim == 4:
            additions = choose_additions(coverage.grams, job.calibration.sequences, most)
    fixed = _with_additions(job, additions)
    write_token_file(run.file(FIXED), fixed, _manifest(job, fixed, additions))
    cost = None
    if rounded:
        with clock.stage("round again"):
            rounded[AFTER] = _round(job, schemes, fixed, AFTER)
        with clock.stage("predict"):
            cost = _cost(job, rounded, len(additions.windows))
    found = _record(job, report, coverage, additions, cost)
    _write(job, found, clock)
    return found


def _open(options: CheckOptions, progress: Progress) -> _Job:
    opened = open_model(options.model, options.device)
    calibration = opened.tokens(
        (options.calibration,), options.sequences, options.length, "calibration", options.seed
    )
    if calibration.sequences < 2:
        raise DataError(
            f"{options.calibration}: one window; two or more are needed, for one judges the other"
        )
    tokenizer = opened.checkpoint.tokenizer()
    production = load_production(options.production, tokenizer, options.production_sequences, options.length)
    count = production.tokens.sequences
    return _Job(
        options,
        opened,
        calibration,
        production.rows(range(0, count, 2)),
        production.rows(range(1, count, 2)),
        progress,
    )


def _round(job: _Job, schemes: Mapping[str, Scheme], tokens: TokenSet, name: str) -> Rounded:
    options = job.options
    folder = options.run / f"rounded-{name}-{tokens.digest[:12]}"
    return round_on(
        job.opened, tokens, schemes, options.method, folder, options.seed, options.state_bytes, job.progress
    )


def _cover(job: _Job, rounded: Rounded | None) -> Coverage:
    options, tokens = job.options, job.calibration.tokens
    parts = (tokens[0::2], tokens[1::2], job.looked_at.tokens.tokens)
    streams = [
        stream_over(
            job.opened,
            TokenSet.of(part, f"part {number}"),
            options.run / "spill" / str(number),
            options.state_bytes // 3,
            job.progress,
        )
        for number, part in enumerate(parts)
    ]
    texts = Texts((streams[0], streams[1]), streams[2])
    return cover(texts, options.seed, rounded.weight if rounded else None)


def _with_additions(job: _Job, additions: Additions) -> TokenSet:
    """Calibration with the proposed windows after it."""
    chosen = job.looked_at.tokens.tokens[torch.tensor(additions.windows, dtype=torch.int64)]
    source = f"{job.calibration.source} + {len(additions.windows)} of {job.looked_at.tokens.source}"
    return TokenSet.of(torch.cat([job.calibration.tokens, chosen]), source)


def _manifest(job: _Job, fixed: TokenSet, additions: Additions) -> CalibrationSet:
    added = len(additions.windows)
    shares = ((job.calibration, job.calibration.sequences), (job.looked_at.tokens, added))
    return CalibrationSet(
        tokens=fixed.identity("calibration"),
        tokenizer=vocabulary_digest(job.opened.checkpoint.tokenizer()),
        packing="packed",
        seed=job.options.seed,
        sources=tuple(
            SourceShare(
                source=tokens.source,
                weight=count / fixed.sequences,
                passages=tokens.sequences,
                kept=count,
                tokens=count * tokens.length,
                windows=count,
            )
            for tokens, count in shares
        ),
        dropped=(),
        tokens_per_input=fixed.tokens.numel() / max(site.shape[1] for site in job.opened.map.sites),
    )


def _cost(job: _Job, rounded: dict[str, Rounded], added: int) -> ExpectedCost:
    """Both roundings on the held-out half: predicted, and measured if asked for."""
    options = job.options
    tokens = job.held_out.tokens
    stream = stream_over(
        job.opened, tokens, options.run / "spill" / "predict", options.state_bytes, job.progress
    )
    predicted = predicted_kl(stream, rounded, options.seed)
    measured: dict[str, Interval] = {}
    difference = None
    if options.fix:
        values = {name: _measured(job, found) for name, found in rounded.items()}
        measured = {name: mean_interval(found) for name, found in values.items()}
        pairs = zip(values[AFTER], values[BEFORE], strict=True)
        difference = mean_interval([after - before for after, before in pairs])
    return ExpectedCost(
        scheme=options.scheme,
        method=options.method,
        predicted=predicted[BEFORE],
        predicted_fixed=predicted[AFTER],
        windows_added=added,
        measured=measured.get(BEFORE),
        measured_fixed=measured.get(AFTER),
        difference=difference,
        held_out=tokens.identity("evaluation"),
    )


def _measured(job: _Job, rounded: Rounded) -> list[float]:
    """KL of each held-out window, float32."""
    options = job.options
    meter = Meter(
        job.opened.model,
        job.opened.map,
        job.held_out.tokens,
        exact(options.device),
        options.run / "cache",
        options.run / "spill",
        options.state_bytes,
        job.progress,
        "measure",
    )
    scores = meter.weights(rounded.weights(job.opened.map.by_name()))
    return [float(value) for value in scores.kl.double().mean(dim=1)]


def _record(
    job: _Job, report: TokenReport, coverage: Coverage, additions: Additions, cost: ExpectedCost | None
) -> CalibrationCheck:
    tokenizer = job.opened.checkpoint.tokenizer()
    tests = (report.test, *([coverage.activations] if coverage.activations else []))
    verdict, sentence = check_verdict(tests, coverage.inputs, cost)
    return CalibrationCheck(
        calibration=job.calibration.identity("calibration"),
        production=job.looked_at.tokens.identity("evaluation"),
        verdict=verdict,
        sentence=sentence,
        tests=tests,
        tokens=report.record(lambda ids: str(tokenizer.decode(ids))),
        inputs=tuple(sorted(coverage.inputs, key=lambda found: -(found.ratio or 0.0))),
        prompts=_prompts(job.looked_at, coverage, report, additions),
        gains=additions.left,
        cost=cost,
        next_command="" if job.options.fix else fix_command(job.options),
        findings=_findings(job, coverage),
    )


def _prompts(
    production: Production, coverage: Coverage, report: TokenReport, additions: Additions
) -> tuple[PromptCoverage, ...]:
    """Worst first. A prompt is proposed if a window that it stands in is."""
    if coverage.relative.ndim != 2:
        return ()
    tokens, prompt = production.tokens.tokens, production.prompt
    place = {window: order for order, window in enumerate(additions.windows, start=1)}
    inside = tokens.clamp_max(len(report.known) - 1)
    unseen = ~(report.known[inside] & (tokens < len(report.known)))
    found = []
    for number, (ratio, count) in prompt_ratios(coverage.relative, prompt).items():
        mine = prompt == number
        windows = torch.nonzero(mine.any(dim=1)).flatten().tolist()
        added = [place[window] for window in windows if window in place]
        found.append(
            PromptCoverage(
                number=number,
                excerpt=production.excerpts[number],
                tokens=count,
                ratio=ratio,
                unseen=float(unseen[mine].double().mean()),
                added=min(added) if added else None,
            )
        )
    return tuple(sorted(found, key=lambda record: -record.ratio)[:PROMPTS])


def _findings(job: _Job, coverage: Coverage) -> tuple[Finding, ...]:
    found = []
    if job.looked_at.tokens.sequences < 8 or job.calibration.sequences < 8:
        text = (
            f"{job.calibration.sequences} windows against {job.looked_at.tokens.sequences}: a test of so few "
            "finds only large differences; give 16 or more of each"
        )
        found.append(Finding(severity="warning", code="few-windows", text=text))
    for record in coverage.inputs:
        if record.calibration_tokens == 0 and record.production_tokens > 0:
            text = f"calibration sent it no token, production {record.production_tokens}: rounded blind"
            finding = Finding(severity="warning", code="input-unreached", text=text, site=record.sites[0])
            found.append(finding)
    return tuple(found)


def fix_command(options: CheckOptions) -> str:
    """The command that recalibrates with the proposed windows and measures again."""
    words = ["quantriage", "calibration", "check", options.model, options.calibration, options.production]
    words += ["--run", options.run, "--scheme", options.scheme, "--method", options.method]
    words += ["--sequences", options.sequences, "--length", options.length]
    words += ["--production-sequences", options.production_sequences]
    words += ["--add", options.add] if options.add else []
    words += ["--seed", options.seed] if options.seed else []
    return shlex.join([*map(str, words), "--fix"])


def _write(job: _Job, found: CalibrationCheck, clock: StageClock) -> None:
    options, opened = job.options, job.opened
    run = RunDir(options.run)
    run.write(CHECK, found)
    run.write_many(SITES, [site.info() for site in opened.map.sites])
    held_out = job.held_out.tokens.identity("evaluation")
    run.write(
        LOCK,
        opened.lock(
            command="calibration check",
            data=[found.calibration, found.production, held_out],
            seed=options.seed,
            settings={"scheme": options.scheme, "method": options.method, "fix": options.fix},
        ),
    )
    run.write(
        SUMMARY,
        RunSummary(
            title=f"Does {Path(options.calibration).name} cover {Path(options.production).name}?",
            model=opened.source,
            stages=tuple(clock.stages),
            findings=found.findings,
        ),
    )
    render(options.run)
