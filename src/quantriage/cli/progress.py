"""How far a long command is, on stderr: a live bar at a terminal, a line now and then elsewhere.

Both are `Progress` callbacks. A log file wants neither cursor movements nor a line for every block, so
without a terminal each stage says something at its start and then at most every ten seconds. rich is
imported only for the bar.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from quantriage.cli.printable import printable
from quantriage.stream.progress import Progress, silent

EVERY = 10.0  # seconds between two lines of one stage


@contextmanager
def shown_progress(quiet: bool, stream: TextIO | None = None) -> Iterator[Progress]:
    """The callback that suits `stream` (stderr unless given); nothing is shown if `quiet`."""
    stream = sys.stderr if stream is None else stream
    if quiet:
        yield silent
    elif stream.isatty():
        with _bars(stream) as bars:
            yield bars
    else:
        yield PlainProgress(stream)


class PlainProgress:
    """One line per stage, at its start and at most every `EVERY` seconds after."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._started: dict[str, float] = {}
        self._printed: dict[str, float] = {}
        self._done: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note progress and perhaps print it; fewer steps than before are the same stage, once more."""
        now = self._clock()
        if done < self._done.get(stage, done + 1):
            self._started[stage] = now
        self._done[stage] = done
        if stage in self._printed and now - self._printed[stage] < EVERY:
            return
        self._printed[stage] = now
        spent = now - self._started[stage]
        line = f"{printable(stage)}: {done}/{total}, {duration(spent)} elapsed"
        if 0 < done < total and spent > 0:
            line += f", about {duration(spent * (total - done) / done)} left"
        self._stream.write(line + "\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """4 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@contextmanager
def _bars(stream: TextIO) -> Iterator[Progress]:
    """A live bar for each stage with counts, elapsed time and time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=Console(file=stream), refresh_per_second=4) as bars:

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(printable(stage), total=total)
            task = next(t for t in bars.tasks if t.id == tasks[stage])
            if done < task.completed:  # the same stage, once more
                bars.reset(task.id, total=total)
            bars.update(task.id, completed=done, total=total)

        yield progress
