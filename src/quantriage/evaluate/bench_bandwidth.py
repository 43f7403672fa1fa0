"""How fast this machine reads its memory: what a decode step can be held against.

Every weight is read once for each token of a single sequence, so bytes over bandwidth bounds decode speed
from above (the roofline model, Williams et al. 2009). The figure is measured, as data sheets know nothing of
the cores a container was given.
"""

import time

import torch

_BYTES = 256_000_000  # larger than any cache
_TRIES = 5


def read_bandwidth(threads: int, size: int = _BYTES) -> float:
    """Bytes per second of summing a large float32 tensor, the best of five. Allocates `size` bytes."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(threads, 1))
    try:
        data = torch.ones(size // 4)
        best = min(_seconds(data) for _ in range(_TRIES))
    finally:
        torch.set_num_threads(before)
    return 4 * data.numel() / best


def _seconds(data: torch.Tensor) -> float:
    started = time.perf_counter()
    data.sum()
    return max(time.perf_counter() - started, 1e-9)
