"""Ask plain transformers for the log-probabilities it gives each token of some prompts.

    PYTHON ask_transformers.py REQUEST.json REPLY.json

As most users run a checkpoint, with nothing of quantriage imported: which compressed-tensors or gptqmodel is
installed decides what loads at all. The functions also serve the engine that runs in our own process. The
files are described in quantriage.evaluate.engines.outside. Nothing is unpickled and no remote code is run.
"""

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor


def version() -> str:
    """Name and version of the engine."""
    return f"transformers {transformers.__version__}"


def load(model: str, dtype: str, options: Mapping[str, object]) -> Any:
    """The model as transformers loads it. options: settings of its config, a dot for one inside another."""
    path = Path(model)
    gguf = path.suffix == ".gguf"
    place = path.parent if path.is_file() else path
    local = {"local_files_only": True, "trust_remote_code": False}
    extra: dict[str, Any] = {"gguf_file": path.name} if gguf else {"use_safetensors": True}
    if options:
        named = {"gguf_file": path.name} if gguf else {}
        config = transformers.AutoConfig.from_pretrained(place, **local, **named)
        for name, value in options.items():
            _set(config, name, value)
        extra["config"] = config
    wanted = "float32" if gguf and dtype == "auto" else dtype
    chosen = wanted if wanted == "auto" else getattr(torch, wanted)
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=chosen, **local, **extra)
    return loaded.eval()


def _set(config: Any, name: str, value: object) -> None:
    """Change one setting; a name that the config does not have is refused."""
    *outer, last = name.split(".")
    for part in outer:
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    if isinstance(config, dict):
        config[last] = value
    elif hasattr(config, last):
        setattr(config, last, value)
    else:
        raise ValueError(f"{type(config).__name__} has no setting {name!r}")


def dtype_name(model: Any) -> str:
    """The dtype that the model computes in."""
    return str(model.dtype).removeprefix("torch.")


@torch.no_grad()
def next_logits(model: Any, tokens: list[int]) -> Tensor:
    """Logits [length - 1, vocab] in float32 for the tokens from the second on."""
    logits: Tensor = model(torch.tensor([tokens], device=model.device), use_cache=False).logits
    return logits[0, :-1].float().cpu()


def logprobs_of(logits: Tensor, tokens: list[int]) -> list[float]:
    """Log-probability of each token but the first, natural logarithm."""
    index = torch.tensor(tokens[1:])[:, None]
    chosen: list[float] = (logits.gather(1, index)[:, 0] - logits.logsumexp(dim=-1)).tolist()
    return chosen


def end_with_caller() -> None:
    """End this process when the caller is gone: it holds the other end of our standard input."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Read the request, run the model, write the reply."""
    end_with_caller()
    request = json.loads(Path(sys.argv[1]).read_text())
    model = load(request["model"], request["dtype"], request["options"])
    rows = [logprobs_of(next_logits(model, tokens), tokens) for tokens in request["tokens"]]
    reply = {"engine": version(), "dtype": dtype_name(model), "logprobs": rows}
    Path(sys.argv[2]).write_text(json.dumps(reply))


if __name__ == "__main__":
    main()
