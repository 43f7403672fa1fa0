"""`advise`: constraints in, ranked ways of storing and running a model out, measured where a run says so."""

from typing import Literal

from quantriage.errors import UsageError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.plan.advice import Subject, advise_on, replaced_types, unmatched
from quantriage.plan.advice_evidence import Evidence, gather
from quantriage.plan.advice_rules import Rules, advice_rules
from quantriage.plan.advice_sizes import model_shape
from quantriage.records.advice import ANY, Advice, Constraints, Strategy
from quantriage.records.run_dir import ADVICE, SUMMARY, RunDir
from quantriage.records.types import RunSummary
from quantriage.report.render import render
from quantriage.stream.progress import Progress, silent
from quantriage.workflows.advise_options import AdviseOptions
from quantriage.workflows.stages import StageClock


def advise(options: AdviseOptions, progress: Progress = silent) -> Advice:  # noqa: ARG001 - it takes a second
    """Sizes from the config, quality and speed from runs or rules. Reads weights only for a digest."""
    rules = advice_rules()
    asked = _constraints(options, rules)
    clock = StageClock()
    with clock.stage("advise"):
        checkpoint = open_checkpoint(options.model)
        subject = Subject(options.model, checkpoint.config, model_shape(checkpoint.config))
        digest = checkpoint.digest() if options.runs else ""
        evidence = gather(options.runs, digest, asked.hardware)
        strategies, rejected = advise_on(subject, asked, rules, evidence)
    advice = Advice(
        model=options.model,
        digest=digest,
        weights=subject.shape.weights,
        constraints=asked,
        strategies=strategies,
        rejected=rejected,
        notes=(
            *_notes(asked, evidence, strategies, checkpoint.config),
            *replaced_types(subject.shape, rules, strategies),
        ),
        sentence=_sentence(strategies, asked, rules),
    )
    if options.run is not None:
        run = RunDir(options.run)
        run.write(ADVICE, advice)
        run.write(
            SUMMARY,
            RunSummary(
                title=f"Advice for {options.model.rstrip('/').rpartition('/')[2]}",
                model=options.model,
                stages=tuple(clock.stages),
            ),
        )
        render(options.run)
    return advice


def _constraints(options: AdviseOptions, rules: Rules) -> Constraints:
    """Checked against the rules' own names."""
    for name, known in (
        ("hardware", tuple(rules.hardware)),
        ("engine", (ANY, *rules.engines)),
        ("quality", tuple(rules.floors)),
    ):
        if getattr(options, name) not in known:
            raise UsageError(f"--{name} {getattr(options, name)}: expected one of {', '.join(known)}")
    priority: Literal["latency", "throughput"] = "latency" if options.priority == "latency" else "throughput"
    return Constraints(
        memory_bytes=int(options.memory_gb * 1e9),
        hardware=options.hardware,
        engine=options.engine,
        context=options.context,
        sequences=options.sequences,
        priority=priority,
        quality=options.quality,
        max_kl=options.max_kl,
        max_perplexity_ratio=options.max_perplexity_ratio,
    )


def _notes(
    asked: Constraints, evidence: Evidence, strategies: tuple[Strategy, ...], config: object
) -> tuple[str, ...]:
    notes = [
        "memory is weights and a 16-bit key-value cache at the context asked for; activations of longer "
        "prompts than were measured come on top"
    ]
    overhead = dict(evidence.overhead)
    if overhead:
        said = ", ".join(f"{engine} {size / 1e6:.0f} MB" for engine, size in overhead.items())
        notes.append(f"what engines were measured to need beyond the weights is counted: {said}")
    else:
        notes.append("an engine's own memory and its buffers are not counted: give a bench run with --runs")
    longest = getattr(config, "max_position_embeddings", None)
    if isinstance(longest, int) and asked.context > longest:
        notes.append(f"the model takes {longest} tokens; a context of {asked.context} is beyond it")
    notes += [f"not used, {text}" for text in evidence.ignored]
    notes += unmatched(evidence, [one.made for one in strategies if one.made])
    return tuple(notes)


def _sentence(strategies: tuple[Strategy, ...], asked: Constraints, rules: Rules) -> str:
    where = rules.hardware[asked.hardware]
    if not strategies:
        return (
            f"Nothing known here meets the constraints on {where}: each one's reasons say where to give way."
        )
    first = strategies[0]
    needed, there = first.total_bytes / 1e9, asked.memory_bytes / 1e9
    return (
        f"{first.title} in {first.engine}: {needed:.3g} of {there:.3g} GB on {where}. "
        f"Quality {first.quality.basis}: {first.quality.text}. "
        f"Speed {first.speed.basis}: {first.speed.text}."
    )
