"""Time vLLM by stepping its engine: the first step that gives a token ends the prefill.

    PYTHON bench_vllm.py REQUEST.json DESCRIPTOR

The two files are described in bench_loop and quantriage.evaluate.engines.bench_process. Compilation stays
off, as in ask_vllm: on a CPU it takes minutes and no round here is worth them.
"""

import importlib
import itertools
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ask: Any = importlib.import_module("ask_vllm")  # beside this file
loop: Any = importlib.import_module("bench_loop")


def load(request: Mapping[str, Any]) -> Any:
    """vLLM over one model, one request at a time."""
    vllm: Any = importlib.import_module("vllm")
    path = Path(request["model"])
    settings: dict[str, Any] = {
        "model": str(path.parent if path.is_file() else path),
        "skip_tokenizer_init": True,
        "dtype": request["dtype"],
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "max_model_len": request["length"],
        "max_num_batched_tokens": max(request["length"], 2048),  # a prompt in one step
        "max_num_seqs": 1,
    }
    llm = vllm.LLM(**settings | request["options"])
    numbers = itertools.count()

    def run(tokens: list[int], new: int) -> Any:
        wanted = vllm.SamplingParams(max_tokens=new + 1, temperature=0.0, ignore_eos=True, detokenize=False)
        engine, first, made = llm.llm_engine, 0.0, 0
        started = time.perf_counter()
        engine.add_request(str(next(numbers)), {"prompt_token_ids": tokens}, wanted)
        while engine.has_unfinished_requests():
            for answer in engine.step():
                made = len(answer.outputs[0].token_ids)
                first = first or (time.perf_counter() - started if made else 0.0)
        return loop.Timing(first, time.perf_counter() - started, made)

    return loop.Loaded(
        f"vllm {vllm.__version__}",
        str(llm.llm_engine.model_config.dtype).removeprefix("torch."),
        run,
        gpu=gpu_bytes,  # no weights: on a CPU its kernels keep copies that are no parameters
    )


def gpu_bytes() -> int | None:
    """Peak of torch's allocator, which holds the whole key-value cache; None without a GPU."""
    torch: Any = importlib.import_module("torch")
    peak = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    return peak or None


if __name__ == "__main__":
    for name, value in ask.SETTINGS.items():
        os.environ.setdefault(name, value)
    importlib.import_module("vllm")
    loop.serve(load)
