"""Time, CPU time and peak memory of each stage of a command."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

from quantriage.records.types import Stage


class StageClock:
    """Collects one `Stage` record for each `with clock.stage(name)`."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the body. Peak memory is the process's peak so far, which is what the system reports."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.stages.append(
            Stage(
                name=name,
                seconds=time.perf_counter() - wall,
                cpu_seconds=time.process_time() - cpu,
                peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            )
        )
