"""The half of a speed measurement that runs beside the engine: load once, then one round for each line read.

Shared by the bench scripts of all engines, so that their clocks, memory figures and ends are the same. Runs
in an engine's own environment and imports nothing of quantriage or of any engine. Commands come as JSON lines
on standard input, `{"tokens": [...], "new": n}` or `{"profile": true}`; replies go as JSON lines to the file
descriptor named on the command line, because engines print what they like to standard output.
"""

import json
import os
import queue
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Seconds from the request to the first new token and to the last; how many were made."""

    first: float
    total: float
    made: int


@dataclass(frozen=True)
class Loaded:
    """A model that an engine holds.

    weights: bytes of parameters in memory, asked after the rounds; None where the engine does not tell.
    gpu: peak bytes on a GPU, None without one. profile: (operation, share of the CPU time) of one step.
    """

    engine: str
    dtype: str
    run: Callable[[list[int], int], Timing]
    weights: Callable[[], int | None] = lambda: None
    gpu: Callable[[], int | None] = lambda: None
    profile: Callable[[list[int]], list[tuple[str, float]]] = lambda _: []


def serve(load: Callable[[Mapping[str, Any]], Loaded]) -> None:
    """Answer until standard input ends: SCRIPT REQUEST.json DESCRIPTOR. The engine is imported by now."""
    request = json.loads(Path(sys.argv[1]).read_text())
    replies = os.fdopen(int(sys.argv[2]), "w", buffering=1)
    commands = _commands()
    before = peak_memory()
    started = time.perf_counter()
    loaded = load(request)
    _reply(
        replies,
        {
            "engine": loaded.engine,
            "dtype": loaded.dtype,
            "seconds": time.perf_counter() - started,
            "before": before,
        },
    )
    while True:
        command = commands.get()
        if command.get("profile"):
            operations = [list(entry) for entry in loaded.profile(command["tokens"])]
            _reply(replies, {"operations": operations, "weights": loaded.weights()})
        else:
            cpu = time.process_time()
            timing = loaded.run(command["tokens"], command["new"])
            cpu = time.process_time() - cpu
            _reply(
                replies,
                {
                    "first": timing.first,
                    "total": timing.total,
                    "made": timing.made,
                    "cpu": cpu,
                    "peak": peak_memory(),
                    "gpu": loaded.gpu(),
                },
            )


def peak_memory() -> int:
    """Largest resident set so far, in bytes.

    VmHWM, not getrusage: the latter's figure survives exec and so begins at the size of our caller.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _reply(replies: Any, content: Mapping[str, object]) -> None:
    replies.write(json.dumps(content) + "\n")
    replies.flush()


def _commands() -> "queue.Queue[dict[str, Any]]":
    """Commands as they come. The process ends with its input, also in the middle of a round."""
    found: queue.Queue[dict[str, Any]] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            found.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return found
