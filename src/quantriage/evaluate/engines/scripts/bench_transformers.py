"""Time plain transformers: prefill, then greedy steps with its key-value cache.

    PYTHON bench_transformers.py REQUEST.json DESCRIPTOR

The two files are described in bench_loop and quantriage.evaluate.engines.bench_process. The steps are those
of `generate` without its sampling and stopping rules, which cost the same for every checkpoint.
"""

import importlib
import time
from collections.abc import Mapping
from typing import Any

import torch

ask: Any = importlib.import_module("ask_transformers")  # beside this file
loop: Any = importlib.import_module("bench_loop")

_OPERATIONS = 12  # listed of a profile
_PROFILED_STEPS = 3


def load(request: Mapping[str, Any]) -> Any:
    """The model as `from_pretrained` gives it."""
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    model = ask.load(request["model"], request["dtype"], request["options"])
    if request["device"] != "cpu":
        model = model.to(request["device"])

    return loop.Loaded(
        ask.version(),
        ask.dtype_name(model),
        lambda tokens, new: run(model, tokens, new),
        lambda: weight_bytes(model),
        gpu_bytes,
        lambda tokens: profile(model, tokens),
    )


@torch.no_grad()
def run(model: Any, tokens: list[int], new: int) -> Any:
    """One prompt and `new` tokens after the first one."""
    started = time.perf_counter()
    cache, token = _prefill(model, tokens)
    first = time.perf_counter() - started
    for _ in range(new):
        cache, token = _step(model, cache, token)
    return loop.Timing(first, time.perf_counter() - started, new + 1)


def _prefill(model: Any, tokens: list[int]) -> tuple[Any, int]:
    ids = torch.tensor([tokens], device=model.device)
    out = model(ids, use_cache=True, logits_to_keep=1)
    return out.past_key_values, int(out.logits[0, -1].argmax())  # int() waits for a GPU


def _step(model: Any, cache: Any, token: int) -> tuple[Any, int]:
    out = model(torch.tensor([[token]], device=model.device), past_key_values=cache, use_cache=True)
    return out.past_key_values, int(out.logits[0, -1].argmax())


def weight_bytes(model: Any) -> int:
    """Parameters and buffers, each storage once: a tied head adds nothing."""
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def gpu_bytes() -> int | None:
    """Peak of the allocator, None without a GPU in use."""
    peak = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    return peak or None


@torch.no_grad()
def profile(model: Any, tokens: list[int]) -> list[tuple[str, float]]:
    """Where a decode step's time goes: operations with their share of the time spent in any of them."""
    cache, token = _prefill(model, tokens)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, acc_events=True) as recorded:
        for _ in range(_PROFILED_STEPS):
            cache, token = _step(model, cache, token)
    times = {event.key: float(event.self_cpu_time_total) for event in recorded.key_averages()}
    total = sum(times.values()) or 1.0
    largest = sorted(times.items(), key=lambda entry: -entry[1])[:_OPERATIONS]
    return [(name[:80], spent / total) for name, spent in largest]


if __name__ == "__main__":
    loop.serve(load)
