"""An engine in a Python environment of its own, asked through two small files.

The script that asks it lies in this package but imports only the engine, so the other environment needs
nothing of ours: serving engines pin versions of torch and transformers that no shared environment meets.
Request: `{"model", "tokens", "dtype", "options", "asked"}`, reply: `{"engine", "dtype", "logprobs"}`, with
one list for each sequence and null where nothing was asked. A server to talk to was rejected: one question
does not pay for a port, a start-up protocol and an orphan when we are killed.
"""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from quantriage.errors import EngineError
from quantriage.evaluate.engines.protocol import EngineAnswer, EngineQuestion, LogitsVisitor, answer_of

_SCRIPTS = "quantriage.evaluate.engines.scripts"
_TAIL = 2000  # bytes of the engine's own output that an error quotes
_REPLY_BYTES = 64  # for each log-probability, with room
_REPLY_LEAST = 1 << 16


class _Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a script writes. Python's json writes NaN and Infinity, which msgspec does not read."""

    engine: str
    dtype: str
    logprobs: list[list[float | None]]


@dataclass(frozen=True)
class OutsideEngine:
    """One script run by `python`. `most`: tokens asked for in all, None for every one."""

    name: str
    script: str
    python: Path
    seconds: float
    refusal: Callable[[str], str | None]
    most: int | None = None

    def refuses(self, kind: str) -> str | None:
        """As the engine's own file says."""
        return self.refusal(kind)

    def ask(self, question: EngineQuestion, visit: LogitsVisitor | None = None) -> EngineAnswer:  # noqa: ARG002
        """Write the request, run the script under the time limit, read the reply. Raises EngineError."""
        asked = spread(question.tokens.shape[0], question.tokens.shape[1] - 1, self.most)
        with tempfile.TemporaryDirectory(prefix="quantriage-engine-") as folder:
            request, reply = Path(folder) / "request.json", Path(folder) / "reply.json"
            request.write_text(
                json.dumps(
                    {
                        "model": str(question.model.absolute()),
                        "tokens": question.tokens.tolist(),
                        "dtype": question.dtype,
                        "options": dict(question.options),
                        "asked": [row.nonzero()[:, 0].tolist() for row in asked],
                    }
                )
            )
            self._run(request, reply, Path(folder) / "output.txt")
            return self._read(reply, asked)

    def _run(self, request: Path, reply: Path, output: Path) -> None:
        # Nothing of this environment's packages may reach the other one.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        with as_file(files(_SCRIPTS) / self.script) as script, output.open("wb") as log:
            command = [str(self.python), str(script), str(request), str(reply)]
            try:
                running = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,  # never written: its end tells the script that we are gone
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=clean,
                    cwd=output.parent,
                    start_new_session=True,  # an engine's own children end with it
                )
            except OSError as error:
                raise EngineError(
                    f"{self.name}: {self.python} cannot be run ({error.strerror}); expected the Python of an "
                    "environment with the engine, --engine-python PATH"
                ) from error
            code = _wait(running, self.seconds)
        if code is None:
            raise EngineError(
                f"{self.name}: no answer within {self.seconds:g} s, ended; ask for fewer or shorter windows, "
                f"or give it more time. {_tail(output)}"
            )
        if code != 0 or not reply.is_file():
            raise EngineError(f"{self.name}: ended with status {code} and no answer. {_tail(output)}")

    def _read(self, reply: Path, asked: Tensor) -> EngineAnswer:
        size, most = reply.stat().st_size, _REPLY_LEAST + _REPLY_BYTES * asked.numel()
        if size > most:
            raise EngineError(f"{self.name}: a reply of {size} bytes, expected at most {most}")
        try:
            found = msgspec.convert(json.loads(reply.read_bytes()), _Reply)
        except (ValueError, RecursionError, msgspec.ValidationError) as error:
            raise EngineError(f"{self.name}: its reply cannot be read ({error})") from error
        if [len(row) for row in found.logprobs] != [asked.shape[1]] * asked.shape[0]:
            raise EngineError(
                f"{self.name}: {len(found.logprobs)} rows of log-probabilities in its reply, expected "
                f"{asked.shape[0]} of {asked.shape[1]}"
            )
        values = torch.tensor(
            [[torch.nan if x is None else x for x in row] for row in found.logprobs], dtype=torch.float32
        )
        return answer_of(found.engine[:100], found.dtype[:40], values, asked)


def spread(sequences: int, positions: int, most: int | None) -> Tensor:
    """Positions to ask for, bool [sequences, positions]: about `most` in equal shares, evenly spread."""
    asked = torch.ones(sequences, positions, dtype=torch.bool)
    if most is None or sequences * positions <= most:
        return asked
    share = max(1, most // sequences)
    asked.zero_()
    asked[:, (torch.arange(1, share + 1) * positions // share) - 1] = True
    return asked


def _wait(running: "subprocess.Popen[bytes]", seconds: float) -> int | None:
    """Exit status, or None if the time was up; nothing of the engine is left running in either case."""
    try:
        return running.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        if running.stdin is not None:
            running.stdin.close()


def _tail(output: Path) -> str:
    """The end of what the engine printed."""
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - _TAIL))
        text = file.read().decode(errors="replace").strip()
    return f"Its last output: {text}" if text else "It printed nothing."
