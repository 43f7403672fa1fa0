"""One reader under atheris (libFuzzer): coverage of quantriage's own code decides which edits are kept.

    python -m benchmarks.fuzz.guided READER OUT SECONDS

Finds go to OUT/finds, one file for each place in the code, and fuzzing goes on; OUT/READER.json counts. What
ends the process (a hang, a crash in native code) leaves libFuzzer's own file OUT/READER-timeout-... .
"""

import json
import logging
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import Any

import atheris

with atheris.instrument_imports(include=["quantriage"]):
    import quantriage.workflows.lint
    from benchmarks.fuzz.reading import read
import torch
from transformers.utils import logging as transformers_logging

from benchmarks.fuzz.edits import edited
from benchmarks.fuzz.mutate import Vocabulary, crossed, mutated
from benchmarks.fuzz.seeds import ALL, LINT, READERS, seeds

assert quantriage.workflows.lint

SECONDS = 4.0  # of CPU for one file of some kilobytes
MEMORY, FACTOR = 48 << 20, 128  # bytes beyond the resident set before, and bytes for each byte of the file
_ADDRESSES = 1 << 30  # bytes that may be asked for, touched or not, beyond what the libraries took
_SAVE_EVERY = 2.0  # seconds; libFuzzer ends the process without another word from Python
_HANG = 300  # seconds by the wall, for others may use the cores; libFuzzer then ends the process


class LimitError(Exception):
    """More time or memory than a file of this size may take."""


class Target:
    """The function that libFuzzer calls, its mutators, and its counts."""

    def __init__(self, reader: str, out: Path, scratch: Path) -> None:
        self.reader, self.out, self.scratch = reader, out, scratch
        self.readers = {name: one for one in READERS if one != LINT for name in seeds(one)}
        everything = seeds(ALL)
        self.vocabulary = Vocabulary(list(everything.values()))
        self.drafts = {n: d for n, d in everything.items() if reader in (ALL, LINT, self.readers[n])}
        self.counts: dict[str, Any] = {
            "executions": 0,
            "opened": 0,
            "slowest": 0.0,
            "memory": 0,
            "finds": {},
            "by": {},
        }
        self.started = self.saved = time.perf_counter()
        self.references: dict[str, Path] = {}
        for name, draft in self.drafts.items():
            folder = scratch / f"sound-{name}"
            folder.mkdir()
            self.references[name] = draft.write(folder)

    def one(self, data: bytes) -> None:
        """Write one mutated checkpoint and read it."""
        script = self._script(data)
        if script is None:
            return
        draft = edited(self.drafts[script[0]], script[1:])
        try:
            path = draft.write(_emptied(self.scratch / "mutated"))
        except (RecursionError, ValueError, TypeError):  # what JSON cannot hold
            return
        size = sum(file.stat().st_size for file in (self.scratch / "mutated").iterdir())
        self._measured(script, path, size)
        self.counts["executions"] += 1
        by = self.counts["by"]
        by[self.readers[script[0]]] = by.get(self.readers[script[0]], 0) + 1
        if time.perf_counter() > self.saved + _SAVE_EVERY:
            self.save()

    def _measured(self, script: list[Any], path: Path, size: int) -> None:
        before, began = _peak_from_now(), time.process_time()
        try:
            reference = self.references[script[0]] if len(script) % 2 and self.reader == LINT else None
            self.counts["opened"] += read(self.reader, path, reference)
            seconds, grown = time.process_time() - began, _peak() - before
            self.counts["slowest"] = max(self.counts["slowest"], round(seconds, 2))
            self.counts["memory"] = max(self.counts["memory"], grown)
            if seconds > SECONDS:
                raise LimitError(f"{seconds:.1f} s")
            if grown > MEMORY + FACTOR * size:
                raise LimitError(f"{grown} bytes for a file of {size}")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever comes out is what we look for
            self._keep(script, error)

    def _keep(self, script: list[Any], error: BaseException) -> None:
        """Record a find, the first of its place with all its text."""
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "quantriage" in f.filename]
        place = f"{Path(ours[-1].filename).stem}.{ours[-1].name}" if ours else "outside"
        name = f"{type(error).__name__}-{place}-{frames[-1].name.strip('<>')}"
        self.counts["finds"][name] = self.counts["finds"].get(name, 0) + 1
        path = self.out / "finds" / f"{self.reader}-{name}.txt"
        if not path.exists():
            text = "".join(traceback.format_exception(error))
            path.write_text(f"{json.dumps(script)}\n\n{text[:3000]}\n...\n{text[-3000:]}\n")

    def mutate(self, data: bytes, most: int, seed: int) -> bytes:
        """libFuzzer's custom mutator."""
        random = Random(seed)
        script = self._script(data) or [random.choice(list(self.drafts))]
        changed = json.dumps(mutated(script, self.drafts, self.vocabulary, random)).encode()
        return changed if len(changed) <= most else json.dumps(script[:2]).encode()[:most]

    def cross(self, one: bytes, other: bytes, most: int, seed: int) -> bytes:
        """libFuzzer's custom crossover."""
        first, second = self._script(one), self._script(other)
        if first is None or second is None:
            return one
        both = json.dumps(crossed(first, second, Random(seed))).encode()
        return both if len(both) <= most else one

    def save(self) -> None:
        self.saved = time.perf_counter()
        self.counts |= {"seconds": round(self.saved - self.started, 1), "cpu": round(time.process_time(), 1)}
        (self.out / f"{self.reader}.json").write_text(json.dumps(self.counts))

    def _script(self, data: bytes) -> list[Any] | None:
        try:
            script = json.loads(data)
        except (ValueError, RecursionError):
            return None
        sound = isinstance(script, list) and script and script[0] in self.drafts
        return script if sound and all(isinstance(edit, list) and edit for edit in script[1:]) else None


def _emptied(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    return folder


def _peak_from_now() -> int:
    """Forget the largest resident set so far; the present one in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS:")


def _peak() -> int:
    return _status("VmHWM:")


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.partition(key)[2].split(maxsplit=1)[0]) << 10


def main() -> None:
    reader, out, seconds = sys.argv[1], Path(sys.argv[2]), int(float(sys.argv[3]))
    assert reader in (*READERS, ALL)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    transformers_logging.set_verbosity_error()
    corpus = out / "corpus" / reader
    corpus.mkdir(parents=True, exist_ok=True)
    (out / "finds").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        target = Target(reader, out, Path(scratch))
        for name in target.drafts:
            (corpus / name).write_text(json.dumps([name]))
            target.one(json.dumps([name]).encode())  # imports and caches fill before limits are set
        assert target.counts["opened"], target.counts
        target.save()
        limit = _status("VmSize:") + _ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        limits = (f"-max_total_time={seconds}", f"-timeout={_HANG}", f"-report_slow_units={_HANG}")
        inputs = ("-max_len=8000", "-len_control=0", "-rss_limit_mb=4096")
        output = ("-print_final_stats=1", "-verbosity=0", f"-artifact_prefix={out}/{reader}-")
        atheris.Setup(
            ["fuzz", *limits, *inputs, *output, str(corpus)],
            target.one,
            custom_mutator=target.mutate,
            custom_crossover=target.cross,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
