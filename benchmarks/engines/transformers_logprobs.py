"""Ask plain transformers for the log-probability it gives each token of a prompt, and print them as JSON.

    ENV/bin/python benchmarks/engines/transformers_logprobs.py MODEL TOKENS.json [--dtype float32]

The same question and answer as vllm_logprobs, through `from_pretrained` with nothing of quantriage imported:
what most users run. It takes the environment of its caller's choice, because which compressed-tensors is
installed decides whether asymmetric weights load at all (0.18 to 0.20 do not take packed zero points).
"""

import argparse
import json
from pathlib import Path


def read_logprobs(model: str, tokens: list[list[int]], dtype: str) -> list[list[float]]:
    """Log-probabilities of prompts' tokens from the second on, natural logarithm, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    answers: list[list[float]] = []
    with torch.no_grad():
        for row in tokens:
            ids = torch.tensor([row])  # [1, length]
            logits = loaded(ids).logits[0, :-1].float()  # [length - 1, vocab]
            scores = logits.log_softmax(dim=-1).gather(1, ids[0, 1:, None])
            answers.append(scores[:, 0].tolist())
    return answers


def main() -> None:
    """Read the tokens, run the model, print the answer as the only line of standard output."""
    parser = argparse.ArgumentParser(description="Prompt log-probabilities by transformers.")
    parser.add_argument("model")
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    options = parser.parse_args()
    tokens = json.loads(options.tokens.read_text())["tokens"]
    print(json.dumps({"logprobs": read_logprobs(options.model, tokens, options.dtype)}))


if __name__ == "__main__":
    main()
