"""KL and perplexity of a saved directory or GGUF file under plain transformers, on given windows of tokens.

    ENV/bin/python benchmarks/engines/transformers_kl.py REFERENCE CANDIDATE TOKENS.npy

Imports nothing of quantriage: what is tested is what a user of transformers gets from the directory, in
float32. A .gguf file needs the package gguf. Prints one JSON object.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers


def load(path: str) -> Any:
    """The model; transformers finds a GGUF file by its folder and its name."""
    place = Path(path)
    is_file = place.suffix == ".gguf"
    more = {} if is_file else rotary(json.loads((place / "config.json").read_text()))
    return transformers.AutoModelForCausalLM.from_pretrained(
        place.parent if is_file else place,
        gguf_file=place.name if is_file else None,
        dtype=torch.float32,
        device_map="cpu",  # some formats are read only onto a named device
        **more,
    ).eval()


def rotary(config: dict[str, Any]) -> dict[str, float]:
    """What transformers 4 must be told: version 5 writes the rotary base where 4 does not look."""
    base = (config.get("rope_parameters") or {}).get("rope_theta")
    if base is None or not transformers.__version__.startswith("4."):
        return {}
    return {"rope_theta": base}


def log_probabilities(model: Any, row: torch.Tensor) -> torch.Tensor:
    """[length - 1, vocabulary] of one window [length]."""
    with torch.no_grad():
        logits = model(row.unsqueeze(0)).logits[0, :-1]
    return torch.log_softmax(logits.float(), dim=-1)


def main() -> None:
    """Load both whole, compare window by window."""
    reference, candidate, tokens = sys.argv[1:]
    rows = torch.from_numpy(np.load(tokens, allow_pickle=False))
    models = [load(path) for path in (reference, candidate)]
    kl, nll = [], []
    for row in rows:
        expected, found = (log_probabilities(model, row) for model in models)
        kl.append(float((expected.exp() * (expected - found)).sum(-1).double().mean()))
        nll.append(float(-found.gather(1, row[1:, None]).double().mean()))
    figures = {
        "kl": float(np.mean(kl)),
        "perplexity": float(np.exp(np.mean(nll))),
        "transformers": transformers.__version__,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
