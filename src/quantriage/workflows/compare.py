"""`compare`: weights, runtime or data, which of the three carries a candidate's loss."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from quantriage.data.text import load_text
from quantriage.data.token_set import TokenSet
from quantriage.data.windows import leading_tokens
from quantriage.diagnose.split import decide
from quantriage.errors import DataError, EngineError, UsageError
from quantriage.evaluate.engines.protocol import DTYPES, Engine
from quantriage.evaluate.engines.registry import ENGINES, make_engine
from quantriage.evaluate.guard import check_guard, comparable, same_settings
from quantriage.records.diagnosis import GuardFinding, Split, SplitLeg
from quantriage.records.run_dir import LOCK, SPLIT, SUMMARY, RunDir
from quantriage.records.types import RunSummary
from quantriage.report.render import render
from quantriage.stream.progress import Progress, silent
from quantriage.workflows.evaluate import refuse_other_shape
from quantriage.workflows.opened import OpenedModel, open_model
from quantriage.workflows.options import NO_ENGINE, CompareOptions
from quantriage.workflows.split_legs import (
    EngineSettings,
    SplitBench,
    data_leg,
    engine_leg,
    settings_leg,
    weights_leg,
)
from quantriage.workflows.stages import StageClock

LEAST_WINDOWS = 2  # of a prompt set; one window has no interval
_CHARACTERS = 16  # of prompts read for each token wanted


def compare(options: CompareOptions, progress: Progress = silent) -> Split:
    """Guard, then the weights in reference mathematics, each engine, and each prompt set."""
    engines = chosen_engines(options.engine, options.engine_python, options.engine_seconds)
    settings = engine_settings(options.engine_dtype, options.engine_option)
    clock = StageClock()
    with clock.stage("open"):
        reference = open_model(options.reference, options.device)
        candidate = open_model(options.candidate, options.device)
        refuse_unsuitable(engines, candidate)
        tokenizer = reference.checkpoint.tokenizer()
        texts = [load_text(path, tokenizer) for path in (*options.text, *options.prompts)]
        guards = check_guard(reference.checkpoint, candidate.checkpoint, texts, options.length)
        tokens = reference.tokens(options.text, options.sequences, options.length, "evaluation")
        prompts = {
            path.name: prompt_windows(reference, path, options.sequences, options.length)
            for path in options.prompts
        }
    with tempfile.TemporaryDirectory(prefix="quantriage-") as scratch, clock.stage("compare"):
        cache = options.run / "cache" if options.run is not None else Path(scratch) / "cache"
        bench = SplitBench(reference, candidate, cache, Path(scratch), options.state_bytes, progress)
        split = split_models(bench, guards, tokens, prompts, engines, settings)
    if options.run is not None:
        _write(options, split, reference, candidate, (tokens, *prompts.values()), clock)
    return split


def split_models(
    bench: SplitBench,
    guards: Sequence[GuardFinding],
    text: TokenSet,
    prompts: Mapping[str, TokenSet],
    engines: Sequence[Engine],
    settings: EngineSettings,
) -> Split:
    """All legs and the verdict. An engine that fails is a finding, so that the other legs are kept.

    Raises ArchitectureError if the two are not the same model. Peak memory: one block of each model in turn,
    the heads, the state budget; transformers in process holds the whole candidate.
    """
    if not comparable(guards):
        decision = decide(guards, ())
        return Split(guards=tuple(guards), legs=(), carrier=decision.carrier, sentence=decision.sentence)
    refuse_other_shape(bench.reference, bench.candidate)
    first, own = weights_leg(bench, text, "the text")
    legs: list[SplitLeg] = [first]
    found = list(guards)
    if not same_settings(guards):
        leg, own = settings_leg(bench, text, own)
        legs.append(leg)
    for engine in engines:
        try:
            leg, more = engine_leg(bench, engine, text, own, settings)
        except EngineError as error:
            found.append(GuardFinding(check=f"engine {engine.name}", holds=False, evidence=str(error)))
        else:
            legs.append(leg)
            found += more
    legs += [data_leg(bench, tokens, name) for name, tokens in prompts.items()]
    found.sort(key=lambda guard: guard.holds)
    decision = decide(found, legs)
    return Split(guards=tuple(found), legs=tuple(legs), carrier=decision.carrier, sentence=decision.sentence)


def chosen_engines(names: Sequence[str], pythons: Sequence[str], seconds: float) -> tuple[Engine, ...]:
    """Engines by name, "none" for none. pythons: PATH for every engine outside, or ENGINE=PATH."""
    by_name: dict[str, Path] = {}
    for given in pythons:
        name, separator, path = given.partition("=")
        if separator and name in ENGINES:
            by_name[name] = Path(path)
        else:
            by_name[""] = Path(given)
    return tuple(make_engine(name, by_name, seconds) for name in dict.fromkeys(names) if name != NO_ENGINE)


def engine_settings(dtype: str, options: Sequence[str]) -> EngineSettings:
    """Settings out of --engine-dtype and --engine-option NAME=VALUE; a value is JSON, or else a string."""
    if dtype not in DTYPES:
        raise UsageError(f"--engine-dtype {dtype}: expected one of {', '.join(DTYPES)}")
    found: dict[str, object] = {}
    for given in options:
        name, separator, value = given.partition("=")
        if not separator or not name:
            raise UsageError(f"--engine-option {given}: expected NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return EngineSettings(dtype, found)


def refuse_unsuitable(engines: Sequence[Engine], candidate: OpenedModel) -> None:
    """Raise UsageError for an engine that cannot read the candidate's format."""
    for engine in engines:
        reason = engine.refuses(candidate.checkpoint.kind)
        if reason is not None:
            raise UsageError(f"--engine {engine.name}: {reason}")


def prompt_windows(reference: OpenedModel, path: Path, sequences: int, length: int) -> TokenSet:
    """The windows that a prompt set fills, at most `sequences`, of the text's length: KL depends on it."""
    tokenizer = reference.checkpoint.tokenizer()
    body = length - len(leading_tokens(tokenizer))
    text = load_text(path, tokenizer)[: sequences * length * _CHARACTERS]
    count = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    fits = min(sequences, count // max(body, 1))
    if fits < LEAST_WINDOWS:
        raise DataError(
            f"{path}: {count} tokens fill {fits} windows of {length}, {LEAST_WINDOWS} or more are needed; "
            f"use --length {max(count // LEAST_WINDOWS, 2)} or less, or give more prompts"
        )
    return reference.tokens((path,), fits, length, "evaluation")


def _write(
    options: CompareOptions,
    split: Split,
    reference: OpenedModel,
    candidate: OpenedModel,
    data: Sequence[TokenSet],
    clock: StageClock,
) -> None:
    assert options.run is not None
    run = RunDir(options.run)
    run.write(SPLIT, split)
    run.write(
        LOCK,
        reference.lock(
            command="compare",
            data=[tokens.identity("evaluation") for tokens in data],
            seed=0,
            settings={
                "candidate": options.candidate,
                "candidate_digest": candidate.checkpoint.digest(),
                "engines": ", ".join(options.engine),
                "engine_dtype": options.engine_dtype,
                "engine_options": ", ".join(options.engine_option),
            },
        ),
    )
    run.write(
        SUMMARY,
        RunSummary(
            title=f"{candidate.label} against {reference.label}: weights, runtime or data",
            model=options.reference,
            stages=tuple(clock.stages),
        ),
    )
    render(options.run)
