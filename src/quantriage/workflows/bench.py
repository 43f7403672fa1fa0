"""`bench`: quantized models against the unquantized one, in one or more engines, in one run."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from quantriage.errors import EngineError, UsageError
from quantriage.evaluate.bench_bandwidth import read_bandwidth
from quantriage.evaluate.bench_record import Contestant, bench_record
from quantriage.evaluate.bench_rounds import RoundPlan, Runner, run_rounds
from quantriage.evaluate.engines.bench_process import BenchProcess, BenchRequest
from quantriage.evaluate.engines.protocol import DTYPES
from quantriage.evaluate.engines.registry import ENGINES
from quantriage.formats.bench_layout import stored_layout
from quantriage.formats.checkpoint import Checkpoint, open_checkpoint
from quantriage.records.bench import Bench, BenchFailure
from quantriage.records.lock import make_lock
from quantriage.records.run_dir import BENCH, LOCK, SUMMARY, RunDir
from quantriage.records.types import Hardware, RunSummary
from quantriage.report.render import render
from quantriage.stream.progress import Progress, silent
from quantriage.workflows.bench_options import BenchOptions
from quantriage.workflows.compare import engine_settings
from quantriage.workflows.opened import cpu_name
from quantriage.workflows.stages import StageClock

SCRIPTS = {
    "transformers": "bench_transformers.py",
    "vllm": "bench_vllm.py",
    "llama.cpp": "bench_llama_cpp.py",
}


def bench(options: BenchOptions, progress: Progress = silent) -> Bench:
    """Start every checkpoint in every engine that reads it, time them in turn, compare.

    Raises UsageError if nothing is unquantized, EngineError if no engine ran anything. Peak memory of the
    machine: all of the models at once, each as its engine holds it.
    """
    pythons = _pythons(options)
    contestants, refused = _contestants(options, pythons)
    plan = _plan(options, contestants)
    threads = options.threads or _cores()
    clock = StageClock()
    with clock.stage("rounds"):
        runners = [_runner(one, options, pythons[one.engine], threads) for one in contestants]
        timed, conditions = run_rounds(
            runners, plan, lambda done, total: progress("rounds in turn", done, total)
        )
        bandwidth = read_bandwidth(threads) if options.device == "cpu" else 0.0
    failures = [*refused]
    failures += [
        BenchFailure(checkpoint=c.source, engine=c.engine, error=t.error)
        for c, t in zip(contestants, timed, strict=True)
        if t.error
    ]
    sound = [(c, t) for c, t in zip(contestants, timed, strict=True) if not t.error]
    if not sound:
        raise EngineError(f"no engine ran a checkpoint; the first said: {failures[0].error}")
    found = bench_record(sound, failures, plan, conditions, _hardware(options, threads), threads, bandwidth)
    if options.run is not None:
        _write(options.run, options, found, contestants, clock)
    return found


def _contestants(
    options: BenchOptions, pythons: Mapping[str, Path]
) -> tuple[list[Contestant], list[BenchFailure]]:
    """Every checkpoint with every engine that reads it, references first."""
    opened = [(source, open_checkpoint(source), True) for source in options.reference]
    opened += [(s, open_checkpoint(s), False) for s in options.checkpoints if s not in options.reference]
    chosen: list[Contestant] = []
    refused: list[BenchFailure] = []
    for source, checkpoint, given in opened:
        layout = stored_layout(checkpoint)
        reference = given or layout == "dense"
        taken = 0
        for engine in pythons:
            reason = ENGINES[engine](pythons[engine], options.engine_seconds).refuses(checkpoint.kind)
            reason = reason or _not_its_own(engine, checkpoint)
            if reason is None:
                chosen.append(_contestant(source, checkpoint, layout, engine, reference, chosen))
                taken += 1
            elif not reference:
                refused.append(BenchFailure(checkpoint=source, engine=engine, error=reason))
        if not taken and not reference:
            raise UsageError(f"{source}: {refused[-1].error}; choose an --engine that reads it")
    if not any(one.reference for one in chosen):
        raise UsageError("no unquantized model that a chosen engine reads; give it with --reference")
    return sorted(chosen, key=lambda one: not one.reference), refused


def _not_its_own(engine: str, checkpoint: Checkpoint) -> str | None:
    """transformers does read GGUF, by dequantizing it; timing that says nothing of the file."""
    if engine == "transformers" and checkpoint.kind == "gguf":
        return "transformers dequantizes a GGUF when it loads it and runs a dense model; use llama.cpp"
    return None


def _contestant(
    source: str,
    checkpoint: Checkpoint,
    layout: str,
    engine: str,
    reference: bool,
    chosen: Sequence[Contestant],
) -> Contestant:
    name = checkpoint.path.stem if checkpoint.path.is_file() else checkpoint.path.name
    taken = {one.label for one in chosen}
    label = f"{name}, {engine}"
    while label in taken:
        label += " (again)"
    return Contestant(
        label=label,
        source=source,
        path=checkpoint.path if checkpoint.kind == "gguf" else checkpoint.folder,
        digest=checkpoint.digest(),
        kind=checkpoint.kind,
        layout=layout,
        engine=engine,
        reference=reference,
        file_bytes=checkpoint.file_bytes,
        vocabulary=int(checkpoint.config.vocab_size),
        longest=getattr(checkpoint.config, "max_position_embeddings", None),
    )


def _plan(options: BenchOptions, contestants: Sequence[Contestant]) -> RoundPlan:
    """What to run; raises UsageError if a model has too short a context or the vocabularies differ."""
    length = options.prompt + options.new + 1
    for one in contestants:
        if one.longest is not None and length > one.longest:
            raise UsageError(
                f"{one.source}: {length} tokens in a round, the model takes {one.longest}; give fewer with "
                "--prompt or --new"
            )
    vocabularies = {one.vocabulary for one in contestants}
    if len(vocabularies) > 1:
        raise UsageError(f"vocabularies of {sorted(vocabularies)} tokens: they are not the same model")
    return RoundPlan(
        options.prompt, options.new, options.warmup, options.rounds, vocabularies.pop(), options.seed
    )


def _runner(one: Contestant, options: BenchOptions, python: Path, threads: int) -> Runner:
    settings = engine_settings(options.dtype, options.engine_option)
    length = options.prompt + options.new + 8
    request = BenchRequest(one.path, settings.dtype, length, threads, options.device, settings.options)
    return BenchProcess(one.label, SCRIPTS[one.engine], python, request, options.engine_seconds)


def _pythons(options: BenchOptions) -> dict[str, Path]:
    """The Python of each engine asked for; transformers runs in this environment unless told otherwise."""
    if options.dtype not in DTYPES:
        raise UsageError(f"--dtype {options.dtype}: expected one of {', '.join(DTYPES)}")
    given: dict[str, Path] = {}
    for text in options.engine_python:
        name, separator, path = text.partition("=")
        given[name if separator and name in ENGINES else ""] = Path(
            path if separator and name in ENGINES else text
        )
    found: dict[str, Path] = {}
    for name in dict.fromkeys(options.engine):
        if name not in SCRIPTS:
            raise UsageError(f"--engine {name}: unknown; expected one of {', '.join(SCRIPTS)}")
        python = given.get(name) or (Path(sys.executable) if name == "transformers" else given.get(""))
        if python is None:
            raise UsageError(
                f"--engine {name}: runs in an environment of its own; give its Python with "
                "--engine-python PATH"
            )
        found[name] = python
    return found


def _cores() -> int:
    """Processors that this process may use: a container often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count(logical=False) or 1


def _hardware(options: BenchOptions, threads: int) -> Hardware:
    return Hardware(
        cpu=cpu_name(),
        cores=psutil.cpu_count(logical=True) or 1,
        memory_bytes=psutil.virtual_memory().total,
        device=options.device,
        compute_dtype=options.dtype,
        dtype_reason=f"asked for; {threads} threads for each engine",
    )


def _write(
    folder: Path, options: BenchOptions, found: Bench, contestants: Sequence[Contestant], clock: StageClock
) -> None:
    run = RunDir(folder)
    run.write(BENCH, found)
    first = next(one for one in contestants if one.reference)
    run.write(
        LOCK,
        make_lock(
            command="bench",
            model_source=first.source,
            model_digest=first.digest,
            data=[],
            seed=options.seed,
            settings={
                "checkpoints": ", ".join(options.checkpoints),
                "engines": ", ".join(options.engine),
                "engine_options": ", ".join(options.engine_option),
                "dtype": options.dtype,
                "threads": found.threads,
                "prompt": options.prompt,
                "new": options.new,
                "rounds": options.rounds,
                "warmup": options.warmup,
            },
            hardware=found.hardware,
        ),
    )
    run.write(
        SUMMARY,
        RunSummary(
            title="Speed against the unquantized model",
            model=first.source,
            stages=tuple(clock.stages),
        ),
    )
    render(folder)
