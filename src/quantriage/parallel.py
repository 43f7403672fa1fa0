"""Map pure work over workers. Threads: torch and BLAS release the interpreter lock while they compute.

Rounding is long chains of small operations that one core cannot hide from the interpreter; two inputs of a
block side by side fill two cores. Processes would have to be sent Hessians of hundreds of megabytes.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """As many at once as the machine has cores, at most four, each on one core.

    One core each: torch's own threads meet at a barrier after every small operation, and on a busy machine
    most of the time is then spent waiting for the thread that was not scheduled.
    """
    workers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(function, items))
