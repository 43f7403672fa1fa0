"""A process that holds one model in one engine and answers rounds of a speed measurement.

The engine lives as long as the measurement, so that rounds of several engines can take turns; starting it
for each round was rejected, since loading takes longer than a round and warms nothing. Every wait has a
limit, and what the engine printed is quoted when it fails. Nothing of it is left running.
"""

import json
import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec
import psutil

from quantriage.errors import EngineError

R = TypeVar("R", bound=msgspec.Struct)

SCRIPTS = "quantriage.evaluate.engines.scripts"
_TAIL = 2000  # bytes of the engine's own output that an error quotes
_MOST_LOG = 1 << 20
_MOST_REPLY = 1 << 16
_KERNELS = re.compile(r"Using \w+Kernel\b[^\n]{0,80}|Selected \w+ for \w+|Decompressing model")
_MOST_KERNELS = 5


@dataclass(frozen=True)
class BenchRequest:
    """What to load and how.

    model: a folder, or the .gguf file. length: tokens of a prompt and what follows it. threads: 0 leaves the
    engine its default. device: "cpu", or a torch device.
    """

    model: Path
    dtype: str
    length: int
    threads: int
    device: str = "cpu"
    options: Mapping[str, object] = field(default_factory=dict)


class Started(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """First reply: the engine holds the model. `before`: its memory before it did, bytes."""

    engine: str
    dtype: str
    seconds: float
    before: int


class RoundReply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds to the first new token and to the last; how many; CPU seconds; peak memory so far, bytes."""

    first: float
    total: float
    made: int
    cpu: float
    peak: int
    gpu: int | None


class ProfileReply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Operations of one step with their shares of the time; bytes of the parameters in memory."""

    operations: list[tuple[str, float]]
    weights: int | None


class BenchProcess:
    """`script` of this package run by `python`. Use it in a `with`; raises EngineError for every failure."""

    def __init__(self, name: str, script: str, python: Path, request: BenchRequest, seconds: float) -> None:
        self.name = name
        self._script, self._python, self._seconds = script, python, seconds
        self._folder = tempfile.TemporaryDirectory(prefix="quantriage-bench-")
        self._log = Path(self._folder.name) / "output.txt"
        self._file = Path(self._folder.name) / "request.json"
        self._threads = request.threads
        self._file.write_text(
            json.dumps(
                {
                    "model": str(request.model.absolute()),
                    "dtype": request.dtype,
                    "length": request.length,
                    "threads": request.threads,
                    "device": request.device,
                    "options": dict(request.options),
                }
            )
        )
        self._running: subprocess.Popen[bytes] | None = None
        self._read = -1
        self._pending = b""

    def __enter__(self) -> "BenchProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def start(self) -> Started:
        """Load the model; returns when the engine is ready."""
        # Nothing of this environment's packages may reach the other one.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        if self._threads:
            clean["OMP_NUM_THREADS"] = str(self._threads)
        self._read, write = os.pipe()
        try:
            with as_file(files(SCRIPTS)) as folder, self._log.open("wb") as log:
                self._running = subprocess.Popen(
                    [str(self._python), str(folder / self._script), str(self._file), str(write)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=clean,
                    cwd=self._folder.name,
                    pass_fds=(write,),
                    start_new_session=True,  # an engine's own children end with it
                )
        except OSError as error:
            raise EngineError(
                f"{self.name}: {self._python} cannot be run ({error.strerror}); expected the Python of an "
                "environment with the engine, --engine-python PATH"
            ) from error
        finally:
            os.close(write)
        return self._reply(Started)

    def round(self, tokens: list[int], new: int) -> RoundReply:
        """One prompt, and `new` tokens after the first."""
        self._send({"tokens": tokens, "new": new})
        reply = self._reply(RoundReply)
        if reply.made != new + 1 or not 0 < reply.first < reply.total:
            raise EngineError(
                f"{self.name}: {reply.made} tokens, the first after {reply.first:g} s of {reply.total:g}; "
                f"expected {new + 1}. {self.tail()}"
            )
        return reply

    def profile(self, tokens: list[int]) -> ProfileReply:
        """What one step consists of; empty where the engine cannot tell."""
        self._send({"profile": True, "tokens": tokens})
        return self._reply(ProfileReply)

    def cpu_seconds(self) -> float:
        """CPU time that the engine has used, its children included; 0 once it has ended."""
        if self._running is None:
            return 0.0
        try:
            process = psutil.Process(self._running.pid)
            times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
        except psutil.Error:
            return 0.0
        return float(sum(t.user + t.system for t in times))

    def kernels(self) -> tuple[str, ...]:
        """What the engine printed about the kernels it chose."""
        text = self._log.read_text(errors="replace")[:_MOST_LOG] if self._log.is_file() else ""
        return tuple(dict.fromkeys(found.strip() for found in _KERNELS.findall(text)))[:_MOST_KERNELS]

    def tail(self) -> str:
        """The end of what the engine printed."""
        if not self._log.is_file():
            return "It was not started."
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - _TAIL))
            text = file.read().decode(errors="replace").strip()
        return f"Its last output: {text}" if text else "It printed nothing."

    def end(self) -> None:
        """End the engine and what it started."""
        running, self._running = self._running, None
        if running is not None:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            if running.stdin is not None:
                with suppress(OSError):
                    running.stdin.close()
        if self._read >= 0:
            os.close(self._read)
            self._read = -1
        self._folder.cleanup()

    def _send(self, command: Mapping[str, object]) -> None:
        assert self._running is not None
        assert self._running.stdin is not None
        try:
            self._running.stdin.write(json.dumps(command).encode() + b"\n")
            self._running.stdin.flush()
        except OSError as error:
            raise EngineError(
                f"{self.name}: ended in the middle of the measurement. {self.tail()}"
            ) from error

    def _reply(self, kind: type[R]) -> R:
        line = self._line()
        try:
            return msgspec.json.decode(line, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EngineError(f"{self.name}: its reply cannot be read ({error})") from error

    def _line(self) -> bytes:
        """The next line of the engine within the time limit."""
        deadline = time.monotonic() + self._seconds
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self._read], [], [], left)[0]
            if not ready:
                raise EngineError(
                    f"{self.name}: no answer within {self._seconds:g} s, ended; ask for fewer tokens or "
                    f"give it more time, --engine-seconds. {self.tail()}"
                )
            piece = os.read(self._read, _MOST_REPLY)
            if not piece:
                assert self._running is not None
                code = self._running.wait()
                raise EngineError(f"{self.name}: ended with status {code} and no answer. {self.tail()}")
            self._pending += piece
            if len(self._pending) > _MOST_REPLY:
                raise EngineError(f"{self.name}: a reply of more than {_MOST_REPLY} bytes")
        line, _, self._pending = self._pending.partition(b"\n")
        return line
