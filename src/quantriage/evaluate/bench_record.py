"""Timed rounds to the record of a speed measurement: entries, comparisons, and what they say in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantriage.evaluate.bench_reasons import speed_reasons
from quantriage.evaluate.bench_rounds import Conditions, RoundPlan, Timed
from quantriage.evaluate.bench_statistics import (
    decode_rates,
    geometric,
    outcome,
    paired_ratio,
    prefill_rates,
)
from quantriage.records.bench import (
    Bench,
    BenchComparison,
    BenchEntry,
    BenchFailure,
    OperationShare,
    Outcome,
)
from quantriage.records.types import Hardware, Interval

_BUSY = 0.1  # of the machine, taken by others: figures in seconds are then no property of the engines
_WAITING = 0.05


@dataclass(frozen=True)
class Contestant:
    """A checkpoint in an engine, before it is run. `longest`: positions the model has, None unknown."""

    label: str
    source: str
    path: Path
    digest: str
    kind: str
    layout: str
    engine: str
    reference: bool
    file_bytes: int
    vocabulary: int
    longest: int | None


def bench_record(
    sound: Sequence[tuple[Contestant, Timed]],
    failures: Sequence[BenchFailure],
    plan: RoundPlan,
    conditions: Conditions,
    hardware: Hardware,
    threads: int,
    bandwidth: float,
) -> Bench:
    """Everything that was measured. sound: what ran to its end, references among them."""
    entries = [_entry(contestant, timed, plan) for contestant, timed in sound]
    references = [one for one in entries if one.reference]
    comparisons = [
        _comparison(one, _reference_for(one, references), plan, bandwidth)
        for one in entries
        if not one.reference and references
    ]
    return Bench(
        hardware=hardware,
        threads=threads,
        prompt_tokens=plan.prompt,
        new_tokens=plan.new,
        warmup=plan.warmup,
        rounds=plan.rounds,
        read_bandwidth=bandwidth,
        others_busy=conditions.others_busy,
        idle_busy=conditions.idle_busy,
        entries=tuple(entries),
        comparisons=tuple(comparisons),
        failures=tuple(failures),
        conditions=_said_conditions(conditions, plan, threads),
        sentence=_summary(comparisons, entries, failures),
    )


def _entry(contestant: Contestant, timed: Timed, plan: RoundPlan) -> BenchEntry:
    assert timed.started is not None
    rounds, profile = timed.rounds, timed.profile
    operations = [] if profile is None else profile.operations
    return BenchEntry(
        label=contestant.label,
        checkpoint=contestant.source,
        digest=contestant.digest,
        kind=contestant.kind,
        layout=contestant.layout,
        engine=contestant.engine,
        version=timed.started.engine[:100],
        dtype=timed.started.dtype[:40],
        reference=contestant.reference,
        file_bytes=contestant.file_bytes,
        weight_bytes=None if profile is None else profile.weights,
        load_seconds=timed.started.seconds,
        prefill=geometric(prefill_rates(rounds, plan.prompt)),
        decode=geometric(decode_rates(rounds, plan.new)),
        first_token=geometric([one.first for one in rounds]),
        cpu_per_token=geometric([max(one.cpu, 1e-9) / (plan.new + 1) for one in rounds]),
        memory_before=timed.started.before,
        peak_memory=timed.peak,
        gpu_memory=timed.gpu,
        rounds=tuple(rounds),
        kernels=tuple(line[:200] for line in timed.kernels),
        operations=tuple(OperationShare(name=name, share=share) for name, share in operations),
    )


def _reference_for(entry: BenchEntry, references: Sequence[BenchEntry]) -> BenchEntry:
    """The unquantized model in the same engine, else the first one."""
    return next((one for one in references if one.engine == entry.engine), references[0])


def _comparison(
    entry: BenchEntry, reference: BenchEntry, plan: RoundPlan, bandwidth: float
) -> BenchComparison:
    ours, theirs = entry.rounds, reference.rounds
    prefill = paired_ratio(prefill_rates(ours, plan.prompt), prefill_rates(theirs, plan.prompt))
    decode = paired_ratio(decode_rates(ours, plan.new), decode_rates(theirs, plan.new))
    first, second = outcome(prefill), outcome(decode)
    cpu = paired_ratio([max(r.cpu, 1e-9) for r in theirs], [max(r.cpu, 1e-9) for r in ours])
    memory = entry.peak_memory / reference.peak_memory
    reasons = speed_reasons(entry, reference, bandwidth, first, second)
    return BenchComparison(
        label=entry.label,
        reference=reference.label,
        same_engine=entry.engine == reference.engine,
        prefill=prefill,
        decode=decode,
        first_token=paired_ratio([r.first for r in theirs], [r.first for r in ours]),
        cpu=cpu,
        memory=memory,
        prefill_outcome=first,
        decode_outcome=second,
        reasons=reasons,
        sentence=_sentence(entry, reference, (prefill, first), (decode, second), cpu, memory),
    )


def _sentence(
    entry: BenchEntry,
    reference: BenchEntry,
    prefill: tuple[Interval, Outcome],
    decode: tuple[Interval, Outcome],
    cpu: Interval,
    memory: float,
) -> str:
    """Slower is said plainly and first."""
    parts = [_phase("decode", *decode), _phase("prefill", *prefill)]
    parts.sort(key=lambda part: "slower" not in part)
    return (
        f"{entry.label} ({entry.layout}) against {reference.label}: {parts[0]}, {parts[1]}; processor time "
        f"{1 / cpu.value:.2f} times as much ({1 / cpu.high:.2f} to {1 / cpu.low:.2f}), peak memory "
        f"{memory:.2f} times."
    )


def _phase(name: str, ratio: Interval, result: Outcome) -> str:
    figures = f"{ratio.value:.2f} times the speed, {ratio.low:.2f} to {ratio.high:.2f}"
    words = {
        "faster": f"{name} is faster ({figures})",
        "slower": f"{name} is slower ({figures})",
        "not told apart": f"{name} is not told apart ({figures})",
    }
    return words[result]


def _summary(
    comparisons: Sequence[BenchComparison], entries: Sequence[BenchEntry], failures: Sequence[BenchFailure]
) -> str:
    if not comparisons:
        what = (
            "nothing quantized ran" if not any(not one.reference for one in entries) else "no reference ran"
        )
        return f"{what}, so nothing is compared."
    slower = [one for one in comparisons if "slower" in (one.decode_outcome, one.prefill_outcome)]
    best = max(comparisons, key=lambda one: one.decode.value)
    text = (
        f"{len(slower)} of {len(comparisons)} quantized models are slower than the unquantized one in "
        f"prefill or decode. Fastest decode by the ratio: {best.label}, {best.decode.value:.2f} times "
        f"({best.decode.low:.2f} to {best.decode.high:.2f})."
    )
    if failures:
        text += f" {len(failures)} did not run."
    return text


def _said_conditions(conditions: Conditions, plan: RoundPlan, threads: int) -> tuple[str, ...]:
    said = [
        f"{plan.rounds} rounds after {plan.warmup} of warm-up, engines in turn within each, order rotating; "
        f"one sequence, prompts of {plan.prompt} random tokens, {plan.new} tokens after the first, threads: "
        f"{threads}"
    ]
    if conditions.others_busy > _BUSY:
        said.append(
            f"other processes took {100 * conditions.others_busy:.0f}% of the machine's CPU time: read the "
            "ratios, which noise hits on both sides; tokens per second would be higher on a free machine"
        )
    if conditions.idle_busy > _WAITING:
        said.append(
            f"engines that waited for their turn used {conditions.idle_busy:.2f} CPU seconds a second: they "
            "disturb each other, so measure them in runs of their own too"
        )
    return tuple(said)
