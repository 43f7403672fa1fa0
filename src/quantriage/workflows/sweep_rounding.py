"""Round a model under every trial of a choice, gathering statistics once for all that need the same ones.

Trials that need the same statistics of the same tokens share a pass: none, a forward pass (plain statistics,
block by block on the way) or a forward and a backward pass (Hessians weighted by what the loss reads). Every
block is rounded under all trials of the pass while its statistics are in memory, stored, tallied and
committed to the ledger, so a killed sweep replays the pass and skips what is there.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from quantriage.data.token_set import TokenSet
from quantriage.methods.awq import ScaledWeight
from quantriage.methods.input_statistics import InputStatistics
from quantriage.methods.objective import quadratic
from quantriage.methods.registry import two_sided
from quantriage.methods.smoothquant import joint_error
from quantriage.model.site import Site, read_site
from quantriage.numerics.clipping import error_split
from quantriage.numerics.schemes import Scheme
from quantriage.parallel import threads
from quantriage.records.ledger import Ledger
from quantriage.records.types import Finding, Record
from quantriage.stream.block_hessians import block_hessians
from quantriage.stream.loss_hessians import BlockSums
from quantriage.stream.progress import Progress
from quantriage.stream.site_products import InputKey, input_key
from quantriage.stream.states import StateStore
from quantriage.stream.stream import Stream, StreamSettings
from quantriage.workflows.opened import OpenedModel
from quantriage.workflows.sweep_rounders import ByMethod, Needs, Rounded, Rounder
from quantriage.workflows.sweep_statistics import gather_inputs
from quantriage.workflows.sweep_store import TrialStore
from quantriage.workflows.sweep_trials import Pick, Trial

SchemeOf = Mapping[str, Scheme | None]
"""Site name -> scheme it gets under a trial, None for full precision."""


class Tally(Record, frozen=True):
    """What one trial did to one site: sums that add up over sites."""

    squared: float
    norm: float
    split: tuple[int, float, float] | None  # weights clipped, squared error of those, of the others
    output: float | None  # v H v^T of the error, summed over rows
    joint: float | None  # squared error of the product with rounded inputs, and its power
    joint_power: float | None
    chosen: float | None
    findings: tuple[Finding, ...] = ()
    trial: int = 0
    site: str = ""
    power: float | None = None  # v H v^T of the weight
    cpu_seconds: float = 0.0


class _Committed(Record, frozen=True):
    tallies: tuple[Tally, ...]
    cpu_seconds: float  # of the pass, since the commit before


@dataclass(frozen=True)
class Rounding:
    """All tallies by trial, and for each trial the CPU seconds of its pass without the rounding itself."""

    tallies: dict[int, list[Tally]]
    gathering: dict[int, float]


@dataclass(frozen=True)
class RoundingJob:
    """What is rounded, where it is kept, and under which names it is committed."""

    choice: str
    opened: OpenedModel
    calibration: TokenSet
    trials: tuple[Trial, ...]
    schemes: tuple[SchemeOf, ...]  # by trial
    store: TrialStore
    ledger: Ledger
    spill: Path
    state_bytes: int
    seed: int
    progress: Progress


def round_trials(job: RoundingJob) -> Rounding:
    """All passes. Peak memory: one block, its Hessians and a factorization, the state budget."""
    passes: dict[tuple[Needs, str], list[int]] = {}
    sets: dict[str, TokenSet] = {}
    for number, trial in enumerate(job.trials):
        if not isinstance(trial.rounding, Pick):
            tokens = trial.tokens or job.calibration
            sets[tokens.digest] = tokens
            key = trial.needs, "" if trial.needs == "nothing" else tokens.digest
            passes.setdefault(key, []).append(number)
    found = Rounding({}, {})
    for (needs, digest), numbers in passes.items():
        one = _Pass(job, needs, sets.get(digest, job.calibration), tuple(numbers))
        committed = one.run()
        for number in numbers:
            found.tallies[number] = [t for c in committed for t in c.tallies if t.trial == number]
        rounding = sum(t.cpu_seconds for number in numbers for t in found.tallies[number])
        whole = sum(c.cpu_seconds for c in committed)
        for number in numbers:
            found.gathering[number] = max(0.0, whole - rounding) if needs != "nothing" else 0.0
    return found


class _Pass:
    """One visit of every block for the trials `numbers`."""

    def __init__(self, job: RoundingJob, needs: Needs, tokens: TokenSet, numbers: tuple[int, ...]) -> None:
        self._job, self._needs, self._tokens, self._numbers = job, needs, tokens, numbers
        self._started = time.process_time()

    def run(self) -> list[_Committed]:
        """Round what is not committed yet; everything committed, in block order."""
        job, blocks = self._job, self._job.opened.map.blocks
        missing = [b for b in range(blocks) if self._step(b) not in job.ledger.completed()]
        if missing:
            stream = self._stream()
            {"nothing": self._alone, "inputs": self._forward, "loss": self._backward}[self._needs](
                stream, missing
            )
            stream.states.clear()
        commits = job.ledger.completed()
        return [msgspec.convert(commits[self._step(b)].payload, _Committed) for b in range(blocks)]

    def _step(self, block: int) -> str:
        digest = "" if self._needs == "nothing" else self._tokens.digest[:12]
        return f"{self._job.choice} rounded {self._needs} {digest} {block}"

    def _stream(self) -> Stream:
        job = self._job
        return Stream(
            job.opened.model,
            job.opened.map.sites,
            self._tokens,
            job.opened.compute,
            StateStore(job.spill, job.state_bytes),
            StreamSettings.for_length(self._tokens.length),
            job.progress,
        )

    def _alone(self, stream: Stream, missing: Sequence[int]) -> None:
        for index in missing:
            self._commit(index, stream.load(index), {})

    def _forward(self, stream: Stream, missing: Sequence[int]) -> None:
        stream.embed()
        for index in range(missing[-1] + 1):
            block = stream.load(index)
            if index in missing:
                self._commit(index, block, gather_inputs(stream, index, block, self._sites(index)))
            if index < missing[-1]:
                stream.advance(index, block)

    def _backward(self, stream: Stream, missing: Sequence[int]) -> None:
        wanted = {index: self._sites(index) for index in missing}
        rounders = [self._job.trials[number].rounding for number in self._numbers]
        outputs = any(isinstance(one, ByMethod) and two_sided(one.method) for one in rounders)

        def on_block(index: int, block: nn.Module, sums: BlockSums) -> None:
            sites = self._sites(index) if outputs else ()
            found = {
                key: InputStatistics(
                    total.value(),
                    total.tokens,
                    outputs=tuple(
                        sums.outputs[site.name].values() for site in sites if input_key(site) == key
                    ),
                )
                for key, total in sums.inputs.items()
            }
            self._commit(index, block, found)

        choice = self._job.choice
        stages = (f"{choice}: calibrate", f"{choice}: round")
        block_hessians(stream, wanted, self._job.seed, on_block, stages, outputs=outputs)

    def _sites(self, block: int) -> tuple[Site, ...]:
        return self._job.opened.map.in_block(block)

    def _commit(self, index: int, block: nn.Module, known: Mapping[InputKey, InputStatistics]) -> None:
        job = self._job
        inputs: dict[InputKey, list[Site]] = {}
        for site in self._sites(index):
            inputs.setdefault(input_key(site), []).append(site)
        weights = {s.name: read_site(block, s).float().contiguous() for s in self._sites(index)}
        work = partial(_round_input, job, self._numbers, weights)
        found = [
            one
            for of_input in threads(work, [(tuple(sites), known.get(key)) for key, sites in inputs.items()])
            for one in of_input
        ]
        digests = []
        for number in self._numbers:
            own = {tally.site: weight for tally, weight in found if tally.trial == number}
            digests.append(job.store.write(number, index, own))
        now = time.process_time()
        committed = _Committed(tallies=tuple(tally for tally, _ in found), cpu_seconds=now - self._started)
        job.ledger.commit(self._step(index), " ".join(digests), msgspec.to_builtins(committed))
        self._started = now
        job.progress(f"{job.choice}: round", _done(job, self._step), job.opened.map.blocks)


def _done(job: RoundingJob, step: Callable[[int], str]) -> int:
    completed = job.ledger.completed()
    return sum(step(block) in completed for block in range(job.opened.map.blocks))


def _round_input(
    job: RoundingJob,
    numbers: Sequence[int],
    weights: Mapping[str, Tensor],
    one: tuple[tuple[Site, ...], InputStatistics | None],
) -> list[tuple[Tally, ScaledWeight]]:
    """All trials on the sites of one input; trials with equal rounders go in one call."""
    sites, known = one
    own = [weights[site.name] for site in sites]
    power = [_power(weight, known) for weight in own]
    by_rounder: dict[Rounder, list[int]] = {}
    for number in numbers:
        rounding = job.trials[number].rounding
        assert not isinstance(rounding, Pick)
        if job.schemes[number][sites[0].name] is not None:
            by_rounder.setdefault(rounding, []).append(number)
    found: list[tuple[Tally, ScaledWeight]] = []
    for rounder, members in by_rounder.items():
        schemes = [scheme for n in members if (scheme := job.schemes[n][sites[0].name]) is not None]
        distinct = list(dict.fromkeys(schemes))
        start = time.thread_time()  # one thread rounds one input, on one core
        rounded = rounder.round(own, known, distinct)
        seconds = (time.thread_time() - start) / (len(members) * len(sites))
        for number, scheme in zip(members, schemes, strict=True):
            parts = rounded[distinct.index(scheme)]
            for site, weight, part, of_weight in zip(sites, own, parts, power, strict=True):
                tally = msgspec.structs.replace(
                    _tally(job.trials[number], weight, part, known),
                    trial=number,
                    site=site.name,
                    power=of_weight,
                    cpu_seconds=seconds,
                )
                found.append((tally, part.weight))
    return found


def _power(weight: Tensor, known: InputStatistics | None) -> float | None:
    return None if known is None else float(quadratic(weight, known.hessian).sum(dtype=torch.float64))


def _tally(trial: Trial, weight: Tensor, rounded: Rounded, known: InputStatistics | None) -> Tally:
    """The errors of one weight [out, in]; whose it is, the caller adds. Memory: three copies of it."""
    error = rounded.weight.dequantize().sub_(weight)
    squared = float(error.square().sum(dtype=torch.float64))
    # Other methods choose codes that are not the nearest, so nothing in them is clipped or merely rounded.
    nearest = not isinstance(trial.rounding, Pick) and trial.rounding.name.startswith("rtn")
    split = error_split(weight, rounded.weight.quantized) if nearest else None
    output = joint = joint_power = None
    if known is not None:
        output = float(quadratic(error, known.hessian).sum(dtype=torch.float64))
        if trial.activations and known.sample is not None:
            joint, joint_power = joint_error(weight, rounded.weight, known.sample)
    findings = (Finding(severity=f.severity, code=f.code, text=f.text) for f in rounded.findings)
    return Tally(
        squared=squared,
        norm=float(weight.square().sum(dtype=torch.float64)),
        split=None if split is None else (split.clipped, split.clipping, split.rounding),
        output=output,
        joint=joint,
        joint_power=joint_power,
        chosen=rounded.chosen,
        findings=tuple(findings),
    )
