"""Runs rows of the bench, each in three stages whose results are written at once.

made: the tool runs, timed. judged: `quantriage evaluate` reads the checkpoint. loaded: plain transformers of
the tool's environment reads it. A stage that has a result, or a reason why it has none, is not run again.
Keeping only finished rows was rejected: an interrupted hour of a slow tool would be lost to an evaluation.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path

import msgspec

from benchmarks.measured import (
    ProcessError,
    Shape,
    judged,
    plain_transformers,
    timed,
    write_windows,
)
from benchmarks.peers.rows import Row
from benchmarks.peers.table import Result, markdown, plot
from quantriage.errors import QuantriageError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.records.atomic import write_bytes

CONDITIONS = "conditions.json"
ENVIRONMENT = "environment"  # a reason that another run may find mended, unlike the stages' own


@dataclass(frozen=True)
class Bench:
    """What all rows share."""

    model: str
    out: Path
    calibration: tuple[Path, ...]
    evaluate: tuple[Path, ...]
    sequences: int
    length: int
    evaluation_sequences: int
    evaluation_length: int
    group: int
    threads: int

    @property
    def tokens(self) -> Path:
        """What every tool calibrates on."""
        return self.out / "calibration.npy"

    @property
    def windows(self) -> Path:
        """What plain transformers is asked."""
        return self.out / "evaluation.npy"

    def conditions(self) -> bytes:
        """Everything but the folder, as it is kept there."""
        kept = {name: value for name, value in asdict(self).items() if name != "out"}
        return json.dumps(kept, indent=1, default=str).encode()

    def slug(self, row: Row) -> str:
        """A file name."""
        return row.label.replace(" ", "-")

    def record(self, row: Row) -> Path:
        """Where the row's result is kept."""
        return self.out / "rows" / f"{self.slug(row)}.json"

    def candidate(self, row: Row) -> Path:
        """Where the checkpoint is made."""
        return self.out / "made" / (self.slug(row) + row.suffix)


def prepare(bench: Bench) -> int:
    """Make the folder and the tokens; returns the reference's number of weights.

    Refuses a folder whose rows were made under other conditions: they could not stand in one table.
    """
    for name in ("rows", "made", "logs"):
        (bench.out / name).mkdir(parents=True, exist_ok=True)
    kept = bench.out / CONDITIONS
    if kept.exists() and kept.read_bytes() != bench.conditions():
        raise SystemExit(
            f"{bench.out} holds rows of other conditions ({kept}); take another --out or the same flags"
        )
    write_bytes(kept, bench.conditions())
    shape = Shape(bench.sequences, bench.length)
    evaluation = Shape(bench.evaluation_sequences, bench.evaluation_length)
    if not bench.tokens.exists():
        write_windows(bench.model, bench.calibration, shape, "calibration", bench.tokens)
    if not bench.windows.exists():
        write_windows(bench.model, bench.evaluate, evaluation, "evaluation", bench.windows)
    weights = open_checkpoint(bench.model).weights
    return sum(prod(weights.shape(name)) for name in weights.names())


@dataclass(frozen=True)
class Peer:
    """A tool: the interpreter of its environment, which need not exist, and the script that it runs."""

    python: Path
    script: Path


@dataclass(frozen=True)
class How:
    """limit: seconds for making one checkpoint. retry: what failed before. keep: checkpoints on the disk."""

    peers: Mapping[str, Peer]
    limit: float
    retry: bool = False
    keep: bool = False


def run_rows(bench: Bench, rows: Sequence[Row], how: How) -> list[Result]:
    """Every row in turn; returns those of earlier runs too."""
    count = prepare(bench)
    for row in rows:
        result = read(bench, row) or Result(row.label, count)
        result = replace(result, failed={} if how.retry else without(result.failed, ENVIRONMENT))
        result = save(bench, row, made(bench, row, how, result))
        result = save(bench, row, judged_by_us(bench, row, result))
        result = save(bench, row, loaded_elsewhere(bench, row, how.peers.get(row.peer), result))
        if not how.keep:
            remove(bench.candidate(row))
        print(row.label, line(result), flush=True)
        write(bench)
    return write(bench)


def read(bench: Bench, row: Row) -> Result | None:
    """What an earlier run found."""
    path = bench.record(row)
    return msgspec.json.decode(path.read_bytes(), type=Result) if path.exists() else None


def save(bench: Bench, row: Row, result: Result) -> Result:
    """Keep what is known by now."""
    write_bytes(bench.record(row), msgspec.json.format(msgspec.json.encode(result), indent=1))
    return result


def made(bench: Bench, row: Row, how: How, result: Result) -> Result:
    """The checkpoint, unless it could not be made or nothing is left to do with it."""
    candidate = bench.candidate(row)
    judged_already = result.judged or has_failed(result, "judged")
    if has_failed(result, "made") or (judged_already and (result.loaded or has_failed(result, "loaded"))):
        return result
    if result.cost and candidate.exists():
        return result
    remove(candidate)
    peer = how.peers[row.peer] if row.peer else None
    if peer is not None and not peer.python.exists():
        return failed(result, ENVIRONMENT, f"none at {peer.python}; make it with --setup {row.peer}")
    figures = bench.out / "logs" / f"{bench.slug(row)}.json"
    figures.unlink(missing_ok=True)
    line = command(bench, row, peer, figures)
    try:
        cost = timed(line, bench.out / "logs" / f"{bench.slug(row)}.log", how.limit)
    except ProcessError as error:
        return failed(result, "made", str(error))
    said = json.loads(figures.read_text()) if figures.exists() else {}
    return replace(
        result,
        command=tuple(line),
        tool=said.get("tool", "quantriage"),
        bits=said.get("bits_per_weight"),
        cost=cost,
    )


def command(bench: Bench, row: Row, peer: Peer | None, figures: Path) -> list[str]:
    """What makes the row's checkpoint. peer: None for ours."""
    asked = [word.replace("{group}", str(bench.group)) for word in row.arguments]
    if peer is not None:
        return [
            *(str(peer.python), str(peer.script), "--model", bench.model, "--tokens", str(bench.tokens)),
            *("--out", str(bench.candidate(row)), "--json", str(figures), "--threads", str(bench.threads)),
            *asked,
        ]
    shape = ["--sequences", str(bench.sequences), "--length", str(bench.length)]
    texts = [word for text in bench.calibration for word in ("--calibration", str(text))]
    if asked[0] == "recover":
        shape += ["--evaluation-sequences", str(bench.evaluation_sequences)]
        shape += ["--evaluation-length", str(bench.evaluation_length)]
        texts += [word for text in bench.evaluate for word in ("--evaluate", str(text))]
    target = [] if "--target" in asked else ["--target", "transformers"]
    out = [*target, "--out", str(bench.candidate(row)), "--replace", "--quiet"]
    environment = ["env", f"OMP_NUM_THREADS={bench.threads}"]
    program = str(Path(sys.executable).parent / "quantriage")
    return [*environment, program, asked[0], bench.model, *asked[1:], *texts, *shape, *out]


def judged_by_us(bench: Bench, row: Row, result: Result) -> Result:
    """KL and size as `quantriage evaluate` finds them."""
    if result.judged or has_failed(result, "made") or has_failed(result, "judged"):
        return result
    sequences, length = bench.evaluation_sequences, bench.evaluation_length
    try:
        found = judged(bench.model, bench.candidate(row), bench.evaluate, sequences, length)
    except QuantriageError as error:
        return failed(result, "judged", str(error))
    return replace(result, judged=found)


def loaded_elsewhere(bench: Bench, row: Row, peer: Peer | None, result: Result) -> Result:
    """KL and perplexity as the transformers of the tool's own environment loads it."""
    if result.loaded or has_failed(result, "made") or has_failed(result, "loaded"):
        return result
    python = str(peer.python) if peer is not None else sys.executable
    try:
        found = plain_transformers(python, bench.model, bench.candidate(row), bench.windows)
    except ProcessError as error:
        return failed(result, "loaded", str(error))
    return replace(result, loaded=found)


def without(reasons: Mapping[str, str], stage: str) -> dict[str, str]:
    """The other reasons."""
    return {name: why for name, why in reasons.items() if name != stage}


def has_failed(result: Result, stage: str) -> bool:
    """Whether a reason is kept why there is nothing of this stage."""
    return stage in result.failed or (ENVIRONMENT in result.failed)


def failed(result: Result, stage: str, why: str) -> Result:
    """With the reason kept."""
    return replace(result, failed={**result.failed, stage: why})


def line(result: Result) -> str:
    """One row for the terminal."""
    if result.judged is None:
        return "; ".join(f"{stage}: {why}" for stage, why in result.failed.items())
    spent = f", {result.cost.cpu_seconds:.0f} CPU s" if result.cost else ""
    return f"{result.body:.3f} bits, KL {result.judged.kl:.4f}{spent}"


def remove(path: Path) -> None:
    """A checkpoint, and our records beside it."""
    for place in (path, path.with_name(path.name + ".run")):
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def write(bench: Bench) -> list[Result]:
    """The tables of all rows that were ever run here."""
    records = sorted((bench.out / "rows").glob("*.json"))
    results = [msgspec.json.decode(path.read_bytes(), type=Result) for path in records]
    (bench.out / "peers.json").write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))
    (bench.out / "peers.md").write_text(markdown(results))
    plot(results, bench.out / "peers.html")
    return results
