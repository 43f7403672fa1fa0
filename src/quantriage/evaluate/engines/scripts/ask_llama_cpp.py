"""Ask llama.cpp's server for the log-probabilities it gives some tokens of some prompts.

    PYTHON ask_llama_cpp.py REQUEST.json REPLY.json

Runs in an environment with xllamacpp and imports nothing of quantriage. The files are described in
quantriage.evaluate.engines.outside. The server reports the log-probabilities of the next token after a
prompt, the most likely first, so each token asked for is one request with the text before it, whose cache
the server keeps. A whole vocabulary as JSON takes half a second or more, so few are asked for first.
"""

import importlib
import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MOST_LIKELY = (256, 4096, 1 << 20)  # how many of the most likely tokens are asked for, in turn


def start(model: str, length: int, options: Mapping[str, object]) -> Any:
    """A server over one model. options: attributes of CommonParams, a dot for one inside another."""
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = length + 8
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    # llama.cpp does not read it, as the other engines do; its threads spin, and starve on a busy machine.
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    for name, value in options.items():
        *outer, last = name.split(".")
        place = params
        for part in outer:
            place = getattr(place, part)
        setattr(place, last, value)
    return xllamacpp.Server(params)


def next_logprob(server: Any, before: list[int], token: int) -> float:
    """Log-probability of `token` after the tokens `before`, whatever the sampling settings."""
    for most in MOST_LIKELY:
        for entry in most_likely(server, before, most):
            if entry["id"] == token:
                return float(entry["logprob"])
    return float("-inf")


def most_likely(server: Any, before: list[int], most: int) -> list[Any]:
    """The `most` likeliest next tokens, each with its log-probability.

    The server leaves the list out where the token that it takes ends within a character, as bytes of a rare
    one do. It is then made to take a letter: probabilities are reported as they were before any bias.
    """
    body = {"prompt": before, "max_tokens": 1, "temperature": 0.0, "logprobs": most, "cache_prompt": True}
    for more in ({}, {"logit_bias": [["a", 1000.0]]}):
        reply = server.handle_completions(body | more)
        reply = json.loads(reply) if isinstance(reply, (str, bytes)) else reply
        if "choices" not in reply:
            raise RuntimeError(f"the server answered {str(reply)[:300]}")
        listed = (reply["choices"][0].get("logprobs") or {}).get("content")
        if listed:
            return list(listed[0]["top_logprobs"])
    raise RuntimeError(f"the server reported no probabilities after {len(before)} tokens")


def end_with_caller() -> None:
    """End this process when the caller is gone: it holds the other end of our standard input."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Read the request, run the server, write the reply."""
    end_with_caller()
    request = json.loads(Path(sys.argv[1]).read_text())
    tokens = request["tokens"]
    server = start(request["model"], max(map(len, tokens)), request["options"])
    rows: list[list[float | None]] = []
    for ids, asked in zip(tokens, request["asked"], strict=True):
        row: list[float | None] = [None] * (len(ids) - 1)
        for position in asked:
            row[position] = next_logprob(server, ids[: position + 1], ids[position + 1])
        rows.append(row)
    version = importlib.import_module("xllamacpp").__version__
    reply = {"engine": f"llama.cpp (xllamacpp {version})", "dtype": "its own", "logprobs": rows}
    Path(sys.argv[2]).write_text(json.dumps(reply))


if __name__ == "__main__":
    main()
