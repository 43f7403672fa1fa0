"""Time llama.cpp by its server's own clock of the generation, ours for the whole request.

    PYTHON bench_llama_cpp.py REQUEST.json DESCRIPTOR

The two files are described in bench_loop and quantriage.evaluate.engines.bench_process. A stream's chunks are
no clock: the server holds back a token that ends within a character, which random tokens often do.
"""

import importlib
import json
import os
import time
from collections.abc import Mapping
from typing import Any

ask: Any = importlib.import_module("ask_llama_cpp")  # beside this file
loop: Any = importlib.import_module("bench_loop")


def load(request: Mapping[str, Any]) -> Any:
    """llama.cpp over one file."""
    if request["threads"]:
        os.environ["OMP_NUM_THREADS"] = str(request["threads"])  # where ask_llama_cpp reads it
    layers = {} if request["device"] == "cpu" else {"n_gpu_layers": 9999}
    server = ask.start(request["model"], request["length"], layers | request["options"])

    def run(tokens: list[int], new: int) -> Any:
        body = {
            "prompt": tokens,
            "max_tokens": new + 1,
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        started = time.perf_counter()
        reply = server.handle_completions(body)
        total = time.perf_counter() - started
        reply = json.loads(reply) if isinstance(reply, (str, bytes)) else reply
        if "timings" not in reply:
            raise RuntimeError(f"the server answered {str(reply)[:300]}")
        times = reply["timings"]
        if times["prompt_n"] != len(tokens):
            raise RuntimeError(f"the server ran {times['prompt_n']} tokens of a prompt of {len(tokens)}")
        # Its clock of the generation starts when the first token is there.
        return loop.Timing(total - times["predicted_ms"] / 1000, total, int(times["predicted_n"]))

    version = importlib.import_module("xllamacpp").__version__
    return loop.Loaded(f"llama.cpp (xllamacpp {version})", "its own", run)


if __name__ == "__main__":
    importlib.import_module("xllamacpp")
    loop.serve(load)
