"""What benches measure of other processes and of saved checkpoints: cost, our evaluation, plain transformers.

A child's time is taken by wait4, so that what it imports and what its own children use is counted alike for
every tool. Its memory is the largest resident set of any one process.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantriage.workflows.evaluate import evaluate
from quantriage.workflows.options import EvaluateOptions


@dataclass(frozen=True)
class Cost:
    """Of one process with its children."""

    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int


class ProcessError(Exception):
    """A process ended with an error, or was stopped at its time limit."""


def timed(command: Sequence[str], log: Path, limit: float = 0.0) -> Cost:
    """Run `command` with its output in `log`; raises ProcessError, saying where it stopped.

    limit: seconds until it is stopped, 0 for none.
    """
    start = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            status, cpu_seconds, peak = _wait(process.pid, start + limit if limit else float("inf"))
        except BaseException:  # also KeyboardInterrupt: no child may stay behind
            process.kill()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ProcessError(f"ended with {process.returncode}: {last_words(log)}")
    return Cost(time.perf_counter() - start, cpu_seconds, peak)


def _wait(pid: int, until: float) -> tuple[int, float, int]:
    """Exit status, CPU seconds and peak bytes of a child; ProcessError if it runs past `until`."""
    while time.perf_counter() < until:
        done, status, usage = os.wait4(pid, 0 if until == float("inf") else os.WNOHANG)
        if done:
            return status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
        time.sleep(0.2)
    raise ProcessError("stopped at its time limit")


def last_words(log: Path) -> str:
    """The last line of a log that is not empty: mostly an exception and its message."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "no output"


@dataclass(frozen=True)
class Judged:
    """A saved checkpoint under our evaluation."""

    kl: float
    kl_interval: tuple[float, float]
    perplexity: float
    top1_agreement: float
    bits_per_weight: float  # of the blocks
    file_bytes: int


def judged(reference: str, candidate: Path, text: Sequence[Path], sequences: int, length: int) -> Judged:
    """KL, perplexity and size of a saved directory or file, as `quantriage evaluate` finds them."""
    result = evaluate(
        EvaluateOptions(
            reference=reference,
            candidate=str(candidate),
            text=tuple(text),
            sequences=sequences,
            length=length,
        )
    ).results[-1]
    return Judged(
        result.kl.value,
        (result.kl.low, result.kl.high),
        result.perplexity.value,
        result.top1_agreement.value,
        result.blocks_bits_per_weight or result.bits_per_weight,
        result.file_bytes or 0,
    )


@dataclass(frozen=True)
class Loaded:
    """The same as plain transformers loads it."""

    kl: float
    perplexity: float


def plain_transformers(python: str, reference: str, candidate: Path, tokens: Path) -> Loaded:
    """KL and perplexity of a saved directory as the transformers of `python` loads it, or ProcessError.

    candidate: a folder, which may hold one GGUF file instead, or such a file.
    """
    script = Path(__file__).parent / "engines" / "transformers_kl.py"
    place = next(candidate.glob("*.gguf"), candidate)
    command = [python, str(script), reference, str(place), str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
        raise ProcessError(f"ended with {done.returncode}: {words[-1][-300:]}")
    figures = json.loads(done.stdout.splitlines()[-1])
    return Loaded(figures["kl"], figures["perplexity"])


@dataclass(frozen=True)
class Shape:
    """Windows of text."""

    sequences: int
    length: int


def write_windows(model: str, texts: Sequence[Path], shape: Shape, role: str, out: Path) -> None:
    """The windows that quantriage cuts from `texts`, as a file that any tool reads. role: what for."""
    command = [sys.executable, "-m", "benchmarks.calibration_tokens", "--model", model, "--out", str(out)]
    sizes = ["--sequences", str(shape.sequences), "--length", str(shape.length), "--role", role]
    subprocess.run([*command, *sizes, *map(str, texts)], check=True)
