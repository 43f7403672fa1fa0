"""What `advise` takes; as in options.py, no torch here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantriage.errors import UsageError

PRIORITIES = ("latency", "throughput")


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class AdviseOptions:
    """`advise`: which way to store and run a model under your constraints, and why not another."""

    model: str = field(metadata={"help": "the unquantized model: folder, .gguf file or hub id"})
    memory_gb: float = field(metadata={"help": "memory for weights and key-value cache, GB (of 10^9 bytes)"})
    hardware: str = _option("cpu", "what runs it: cpu, turing, ampere, ada, hopper, blackwell, amd, apple")
    engine: str = _option("any", "what serves it: vllm, transformers, llama.cpp, or any")
    context: int = _option(4096, "tokens of context to keep")
    sequences: int = _option(1, "sequences of that context at once")
    priority: str = _option("latency", "latency of one request, or throughput of many")
    quality: str = _option("good", "floor of quality: near-lossless, good, smallest")
    max_kl: float | None = _option(None, "instead: the most KL to the reference, nats per token")
    max_perplexity_ratio: float | None = _option(None, "instead: the most perplexity over the reference's")
    runs: tuple[Path, ...] = _option((), "run folders of evaluate, recover or bench: measured figures")
    run: Path | None = _option(None, "write the record and a report here")

    def __post_init__(self) -> None:
        if not self.memory_gb > 0:
            raise UsageError(f"--memory-gb {self.memory_gb}: expected more than 0")
        for name in ("context", "sequences"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: expected 1 or more")
        if self.priority not in PRIORITIES:
            raise UsageError(f"--priority {self.priority}: expected one of {', '.join(PRIORITIES)}")
        if self.max_kl is not None and not self.max_kl >= 0:
            raise UsageError(f"--max-kl {self.max_kl}: expected 0 or more")
        if self.max_perplexity_ratio is not None and not self.max_perplexity_ratio >= 1:
            raise UsageError(f"--max-perplexity-ratio {self.max_perplexity_ratio}: expected 1 or more")
