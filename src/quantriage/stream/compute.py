"""Where and in which dtype blocks run, chosen by a measurement.

Products run in bfloat16 under autocast where the processor multiplies bfloat16 clearly faster than float32;
norms, softmax and the residual stream stay in float32, and so do all statistics. A processor without
bfloat16 units emulates them slowly, which is why this is measured and not assumed from a flag.
"""

import contextlib
import time
from dataclasses import dataclass
from functools import partial

import torch

from quantriage.parallel import threads

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FASTER_BY = 1.2  # bfloat16 costs precision; it has to earn it
NARROW = 128  # below this width it gains too little, and too unevenly from run to run, to be worth it


@dataclass(frozen=True)
class Compute:
    """Device and product dtype of a run, with the measurement that chose the dtype."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Products in `dtype`, everything else in float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @property
    def dtype_name(self) -> str:
        """`float32` or `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")


def exact(device: str = "cpu") -> Compute:
    """Float32 throughout: what evaluations that must be compared use."""
    return Compute(torch.device(device), torch.float32, "float32 asked for")


def choose_compute(device: str, width: int) -> Compute:
    """Time a [1024, width] x [width, width] product in both dtypes and take the faster, if clearly so.

    On a CPU in processor time of one thread, so that other work on the machine, which would lengthen either,
    cannot tip a choice that decides bytes; and no narrower than 512, where the dtypes are further apart.
    """
    where = torch.device(device)
    if width < NARROW:
        return Compute(where, torch.float32, f"products of width {width} are too narrow for bfloat16 to pay")
    width = max(width, 512)
    (seconds,) = threads(partial(_best_times, where), [width])
    ratio = seconds[torch.float32] / seconds[torch.bfloat16]
    dtype = torch.bfloat16 if ratio >= FASTER_BY else torch.float32
    reason = f"bfloat16 products of width {width} ran {ratio:.1f} times as fast as float32"
    return Compute(where, dtype, reason)


def resumed_compute(device: str, dtype: str) -> Compute:
    """The dtype an earlier try of this run chose: a second measurement might choose the other."""
    return Compute(torch.device(device), _DTYPES[dtype], f"{dtype}, chosen when this run was started")


def _best_times(device: torch.device, width: int) -> dict[torch.dtype, float]:
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    for _ in range(5):  # in turns: a processor that changes its clock does so for both
        for dtype, best in seconds.items():
            seconds[dtype] = min(best, _time_product(device, dtype, width))
    return seconds


def _time_product(device: torch.device, dtype: torch.dtype, width: int) -> float:
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    left = torch.ones(1024, width, device=device, dtype=dtype)
    right = torch.ones(width, width, device=device, dtype=dtype)
    start = clock()
    product = left @ right
    product[0, 0].item()  # waits for an asynchronous device
    return clock() - start
