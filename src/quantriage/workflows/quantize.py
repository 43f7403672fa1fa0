"""`quantize`: carry out a plan, or one scheme everywhere, and write the checkpoint."""

from pathlib import Path

from quantriage.errors import UsageError
from quantriage.methods.registry import METHODS
from quantriage.numerics.schemes import Scheme
from quantriage.plan.plan_file import from_yaml, to_yaml
from quantriage.plan.targets import sites_for, target_named
from quantriage.records.ledger import Ledger
from quantriage.records.run_dir import LOCK, PLAN, QUANTIZED, SITES, SUMMARY, RunDir
from quantriage.records.types import Plan, RunSummary
from quantriage.report.render import render
from quantriage.stream.progress import Progress, silent
from quantriage.workflows.export import scale_dtype
from quantriage.workflows.export_target import export_for, refuse_for
from quantriage.workflows.fill_bank import Wanted
from quantriage.workflows.fold import fold_channels
from quantriage.workflows.learn_rounding import learn_rounding
from quantriage.workflows.opened import OpenedModel, open_model, started_dtype
from quantriage.workflows.options import QuantizeOptions
from quantriage.workflows.plan import uniform_plan
from quantriage.workflows.rounding import LEDGER, round_candidates
from quantriage.workflows.stages import StageClock

_INTEGERS_ONLY = "gptq-plain"
_TARGET = "vllm"  # of a scheme without a target


def quantize(options: QuantizeOptions, progress: Progress = silent) -> RunSummary:
    """Round every site as planned and export; resumes a killed run in the same run folder."""
    clock = StageClock()
    folder = options.run_folder
    run = RunDir(folder)
    with clock.stage("open"):
        opened = open_model(options.model, options.device, started_dtype(folder / LEDGER))
        plan = _resolve_plan(options, opened)
        scales = scale_dtype(opened.checkpoint)
        schemes = {a.site: Scheme.named(a.scheme, scales) for a in plan.assignments if a.scheme != "none"}
        refuse_for(plan.target, opened, schemes)
        tokens = opened.tokens(
            options.calibration, options.sequences, options.length, "calibration", options.seed
        )
        digest = opened.checkpoint.digest()
    run.write(PLAN, plan)
    run.write_many(SITES, sites_for(plan.target, opened.map.infos()))
    methods = {a.site: a.method for a in plan.assignments}
    settings: dict[str, str | int | float | bool | None] = {
        "verb": "quantize",
        "model": digest,
        "calibration": tokens.digest,
        "seed": options.seed,
        "compute": opened.compute.dtype_name,
        "plan": " ".join(f"{a.site}={a.scheme}/{a.method}" for a in plan.assignments),
        "fold": options.fold,
        "learn_rounding": options.learn_rounding,
    }
    ledger = Ledger(folder / LEDGER, settings)
    scaled, folded = fold_channels(options, opened, tokens, schemes, ledger, clock, progress)
    with clock.stage("quantize"):
        wanted = {name: Wanted((scheme,), methods[name]) for name, scheme in schemes.items()}
        bank, records = round_candidates(
            scaled, tokens, wanted, folder, ledger, options.seed, options.state_bytes, progress
        )
    findings = [f for r in records for f in r.findings] + [*plan.findings, *folded]
    if options.learn_rounding:
        with clock.stage("learned rounding"):
            bank, finding = learn_rounding(
                scaled,
                tokens,
                schemes,
                bank,
                folder,
                ledger,
                options.learn_rounding,
                options.seed,
                options.state_bytes,
                progress,
            )
        findings.append(finding)
    run.write_many(QUANTIZED, records)
    with clock.stage("export"):
        files = export_for(plan.target, scaled, schemes, bank, options.out, options.replace)
    run.write(
        LOCK,
        opened.lock(
            command="quantize",
            data=[tokens.identity("calibration")],
            seed=options.seed,
            settings={
                "target": plan.target,
                "scheme": options.scheme,
                "method": options.method,
                "fold": options.fold,
                "learn_rounding": options.learn_rounding,
            },
            output_files=files,
        ),
    )
    summary = RunSummary(
        title=f"Quantized {opened.label}",
        model=opened.source,
        target=plan.target,
        stages=tuple(clock.stages),
        findings=tuple(findings),
    )
    run.write(SUMMARY, summary)
    render(folder)
    return summary


def _resolve_plan(options: QuantizeOptions, opened: OpenedModel) -> Plan:
    """The plan file, checked against the model, or one scheme for every site."""
    scales = scale_dtype(opened.checkpoint)
    infos = opened.map.infos()
    if (options.plan is None) == (options.scheme is None):
        raise UsageError("give either --plan FILE or --scheme, such as --scheme w4a-g64")
    if options.method not in METHODS:
        raise UsageError(f"method {options.method!r}: expected one of {', '.join(METHODS)}")
    if options.scheme is not None:
        target = options.target or _TARGET
        if options.method == _INTEGERS_ONLY and target_named(target).stored == "gguf":
            raise UsageError(
                f"method {_INTEGERS_ONLY} rounds to integers in groups; for llama.cpp: gptq, rtn"
            )
        return uniform_plan(sites_for(target, infos), options.scheme, target, options.method, scales)
    assert options.plan is not None
    if not options.plan.is_file():
        raise UsageError(
            f"{options.plan}: no such plan file; `quantriage plan RUN --bpw N --out FILE` makes one"
        )
    plan = from_yaml(_as_written(options.plan), infos, options.target, scales)
    unknown = sorted({a.method for a in plan.assignments} - METHODS.keys())
    if unknown:
        raise UsageError(f"{options.plan}: unknown methods {', '.join(unknown)}; known: {', '.join(METHODS)}")
    return plan


def _as_written(path: Path) -> str:
    """The plan's YAML for people; a run folder's own plan.yaml, which holds the record, is turned into it."""
    text = path.read_text(encoding="utf-8")
    if path.name == PLAN and RunDir(path.parent).has(SITES) and "assignments:" in text:
        return to_yaml(RunDir(path.parent).read(PLAN, Plan))
    return text
