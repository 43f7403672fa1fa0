"""Rounds of several engines in turn on one machine: A B C, B C A, C A B, ... so that noise hits all of them.

All engines hold their models for the whole measurement, so peak memory of the machine is their sum. A round
is one prompt of fresh random tokens, the same for every engine. The order rotates, because the first to run
after a pause has a cooler processor. Warm-up rounds are run and thrown away.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import psutil

from quantriage.errors import EngineError
from quantriage.evaluate.engines.bench_process import ProfileReply, RoundReply, Started
from quantriage.records.bench import BenchRound

Report = Callable[[int, int], None]
"""(rounds done, rounds in all)."""


def _quiet(done: int, total: int) -> None:
    """No report."""


class Runner(Protocol):
    """A model held by an engine, as `BenchProcess` is."""

    def start(self) -> Started:
        """Load it."""
        ...

    def round(self, tokens: list[int], new: int) -> RoundReply:
        """One prompt and `new` tokens after the first. Raises EngineError."""
        ...

    def profile(self, tokens: list[int]) -> ProfileReply:
        """What a decode step consists of."""
        ...

    def cpu_seconds(self) -> float:
        """CPU time used so far."""
        ...

    def kernels(self) -> tuple[str, ...]:
        """What it printed about its kernels."""
        ...

    def end(self) -> None:
        """Let go of everything."""
        ...


@dataclass(frozen=True)
class RoundPlan:
    """How much to run. prompt, new: tokens; vocabulary: random ids come from below it."""

    prompt: int
    new: int
    warmup: int
    rounds: int
    vocabulary: int
    seed: int = 0

    def tokens(self, number: int) -> list[int]:
        """The prompt of a round; warm-up rounds have negative numbers."""
        draw = random.Random(f"{self.seed} {number}")
        return [draw.randrange(self.vocabulary) for _ in range(self.prompt)]


@dataclass
class Timed:
    """What one runner gave. `error` is set, and it was ended, where it failed."""

    started: Started | None = None
    rounds: list[BenchRound] = field(default_factory=list)
    peak: int = 0
    gpu: int | None = None
    profile: ProfileReply | None = None
    kernels: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Conditions:
    """CPU time of others during the rounds, over the machine's; of engines that waited, over the rounds'."""

    others_busy: float
    idle_busy: float


def run_rounds(
    runners: Sequence[Runner], plan: RoundPlan, report: Report = _quiet
) -> tuple[list[Timed], Conditions]:
    """Start all, run the rounds in turn, profile, end all. A runner that fails is left out from there on."""
    found = [Timed() for _ in runners]
    try:
        for runner, timed in zip(runners, found, strict=True):
            _guarded(runner, timed, partial(_start, runner, timed))
        total = plan.warmup + plan.rounds
        for number in range(-plan.warmup, 0):
            _one_round(runners, found, plan, number)
            report(number + plan.warmup + 1, total)
        watch = _Watch(runners)
        for number in range(plan.rounds):
            _one_round(runners, found, plan, number, watch)
            report(number + plan.warmup + 1, total)
        conditions = watch.conditions()
        for runner, timed in zip(runners, found, strict=True):
            _guarded(runner, timed, partial(_finish, runner, timed, plan))
    finally:
        for runner in runners:
            runner.end()
    return found, conditions


def _one_round(
    runners: Sequence[Runner],
    found: Sequence[Timed],
    plan: RoundPlan,
    number: int,
    watch: "_Watch | None" = None,
) -> None:
    """Every runner once; `number` below 0 is a warm-up and leaves no record."""
    tokens = plan.tokens(number)
    for place in range(len(runners)):
        index = (number + place) % len(runners)
        runner, timed = runners[index], found[index]

        def once(runner: Runner = runner, timed: Timed = timed, place: int = place) -> None:
            reply = runner.round(tokens, plan.new)
            timed.peak, timed.gpu = max(timed.peak, reply.peak), reply.gpu
            if number >= 0:
                timed.rounds.append(
                    BenchRound(
                        number=number, place=place, first=reply.first, total=reply.total, cpu=reply.cpu
                    )
                )

        before = watch.others_of(index) if watch else 0.0
        _guarded(runner, timed, once)
        if watch:
            watch.waited += watch.others_of(index) - before


def _start(runner: Runner, timed: Timed) -> None:
    timed.started = runner.start()


def _finish(runner: Runner, timed: Timed, plan: RoundPlan) -> None:
    timed.kernels = runner.kernels()
    timed.profile = runner.profile(plan.tokens(0))


def _guarded(runner: Runner, timed: Timed, action: Callable[[], None]) -> None:
    """Do it unless the runner has failed before; what fails now is kept in words, and the runner ended."""
    if timed.error:
        return
    try:
        action()
    except EngineError as error:
        timed.error = str(error)
        runner.end()


class _Watch:
    """Who used the processors since it was made."""

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._runners = runners
        self._started = time.perf_counter()
        self._busy = _busy_seconds()
        self._ours = self._own_seconds()
        self.waited = 0.0

    def others_of(self, index: int) -> float:
        """CPU time so far of all engines but one."""
        return sum(runner.cpu_seconds() for i, runner in enumerate(self._runners) if i != index)

    def conditions(self) -> Conditions:
        """Shares since it was made."""
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        others = (_busy_seconds() - self._busy) - (self._own_seconds() - self._ours)
        share = others / (elapsed * (psutil.cpu_count(logical=True) or 1))
        return Conditions(min(max(share, 0.0), 1.0), max(self.waited, 0.0) / elapsed)

    def _own_seconds(self) -> float:
        return sum(runner.cpu_seconds() for runner in self._runners) + time.process_time()


def _busy_seconds() -> float:
    """CPU time that anything on the machine has used."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    return float(sum(times[:8]) - idle)  # guest time, if listed, is in user time already
