"""What earlier runs measured about a model, joined by digest: quality from proofs, speed from bench records.

A record speaks of the model only if its reference has the model's digest; a figure of another model is no
measurement of this one, however alike they are.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from quantriage.errors import QuantriageError
from quantriage.records.bench import Bench, BenchEntry
from quantriage.records.run_dir import BENCH, LOCK, PROOF, RunDir
from quantriage.records.types import EvalResult, Interval, Lock, Proof

CPU = "cpu"
_RESERVING = frozenset({"vllm"})
"""Engines that take memory for a cache as they are told to, so that a peak does not say what they need."""


@dataclass(frozen=True)
class MeasuredSpeed:
    """Ratios to the unquantized model in the same engine, and what the process needed."""

    engine: str
    decode: Interval
    prefill: Interval
    peak_memory: int
    sentence: str
    run: str


@dataclass(frozen=True)
class MeasuredCheckpoint:
    """A checkpoint, or a scheme measured in memory, with all that is known of it."""

    label: str
    path: str  # empty: it was never saved
    digest: str
    layout: str
    kind: str
    nbytes: int
    bits: float
    kl: Interval | None = None
    perplexity_ratio: float | None = None
    run: str = ""
    speeds: tuple[MeasuredSpeed, ...] = ()

    def speed_in(self, engine: str) -> MeasuredSpeed | None:
        """The last measurement in an engine."""
        return next((one for one in reversed(self.speeds) if one.engine == engine), None)


@dataclass(frozen=True)
class Evidence:
    """All of it. ignored: runs not used, and why. overhead: of engines, bytes needed beyond the weights."""

    checkpoints: tuple[MeasuredCheckpoint, ...] = ()
    overhead: tuple[tuple[str, int], ...] = ()
    ignored: tuple[str, ...] = ()

    def of_layouts(self, layouts: Iterable[str]) -> MeasuredCheckpoint | None:
        """The measured checkpoint of a layout that loses least; of those without a KL, any."""
        wanted = set(layouts)
        found = [one for one in self.checkpoints if one.layout.partition(":")[0] in wanted]
        return min(found, key=lambda one: one.kl.value if one.kl else float("inf"), default=None)


def gather(folders: Iterable[Path], digest: str, hardware: str) -> Evidence:
    """Read run folders. Raises QuantriageError for one without a record that could be used.

    hardware: what will run the model; a speed counts only if it was measured on a CPU too, or on none.
    """
    known: dict[str, MeasuredCheckpoint] = {}
    overhead: dict[str, int] = {}
    ignored: list[str] = []
    for folder in folders:
        run = RunDir.existing(folder)
        if not run.has(PROOF) and not run.has(BENCH):
            raise QuantriageError(f"{folder}: neither {PROOF} nor {BENCH}; expected a run that measured one")
        why = "about another model"
        if run.has(PROOF) and run.has(LOCK) and run.read(LOCK, Lock).model_digest == digest:
            why = ""
            for result in run.read(PROOF, Proof).results:
                _add_quality(known, result, run.read(PROOF, Proof), str(folder))
        if run.has(BENCH):
            bench = run.read(BENCH, Bench)
            on = bench.hardware.device
            ours = any(one.reference and one.digest == digest for one in bench.entries)
            if ours and on.startswith(CPU) != (hardware == CPU):
                why = why and f"timed on {on}, {hardware} is asked for"
            elif ours:
                why = ""
                _add_speed(known, bench, str(folder))
                for entry in bench.entries:
                    beyond = _beyond_weights(entry)
                    overhead[entry.engine] = min(overhead.get(entry.engine, beyond), beyond)
        if why:
            ignored.append(f"{why}: {folder}")
    return Evidence(tuple(known.values()), tuple(overhead.items()), tuple(ignored))


def _beyond_weights(entry: BenchEntry) -> int:
    """Bytes of the engine and its buffers; where several runs saw an engine, the least counts."""
    if entry.engine in _RESERVING:
        return entry.memory_before
    weights = entry.file_bytes if entry.weight_bytes is None else entry.weight_bytes
    if entry.gpu_memory is not None:
        return max(0, entry.gpu_memory - weights)
    return max(entry.memory_before, entry.peak_memory - weights)


def _add_quality(known: dict[str, MeasuredCheckpoint], result: EvalResult, proof: Proof, run: str) -> None:
    if result.kind == "reference":
        return
    key = result.digest or f"{run} {result.label}"
    layout = result.label if result.kind == "uniform" else ""
    before = known.get(key)
    found = MeasuredCheckpoint(
        label=result.label,
        path=result.source if result.digest else "",
        digest=result.digest,
        layout=before.layout if before else layout,
        kind=before.kind if before else "",
        nbytes=result.file_bytes or result.body_bytes,
        bits=result.bits_per_weight,
        kl=result.kl,
        perplexity_ratio=result.perplexity.value / proof.reference_perplexity.value,
        run=run,
        speeds=before.speeds if before else (),
    )
    known[key] = found


def _add_speed(known: dict[str, MeasuredCheckpoint], bench: Bench, run: str) -> None:
    entries = {one.label: one for one in bench.entries}
    for comparison in bench.comparisons:
        if not comparison.same_engine:
            continue
        entry = entries[comparison.label]
        speed = MeasuredSpeed(
            entry.engine, comparison.decode, comparison.prefill, entry.peak_memory, comparison.sentence, run
        )
        before = known.get(entry.digest) or _from_entry(entry, run)
        known[entry.digest] = replace(
            before,
            layout=entry.layout,
            kind=entry.kind,
            path=entry.checkpoint,
            speeds=(*before.speeds, speed),
        )


def _from_entry(entry: BenchEntry, run: str) -> MeasuredCheckpoint:
    name = entry.label.rpartition(",")[0] or entry.label
    return MeasuredCheckpoint(
        name, entry.checkpoint, entry.digest, entry.layout, entry.kind, entry.file_bytes, 0.0, run=run
    )
