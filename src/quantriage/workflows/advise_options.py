"""What `advise` takes; as in options.py, no torch here."""

from dataclasses import dataclass
from pathlib import Path

from quantriage.errors import UsageError
from quantriage.workflows.options import option, required

PRIORITIES = ("latency", "throughput")


@dataclass(frozen=True, kw_only=True)
class AdviseOptions:
    """`advise`: which way to store and run a model under your constraints, and why not another."""

    model: str = required("the unquantized model: folder, .gguf file or hub id")
    memory_gb: float = required("memory for weights and key-value cache, GB (of 10^9 bytes)")
    hardware: str = option("cpu", "what runs it: cpu, turing, ampere, ada, hopper, blackwell, amd, apple")
    engine: str = option("any", "what serves it: vllm, transformers, llama.cpp, or any")
    context: int = option(4096, "tokens of context to keep")
    sequences: int = option(1, "sequences of that context at once")
    priority: str = option("latency", "latency of one request, or throughput of many")
    quality: str = option("good", "floor of quality: near-lossless, good, smallest")
    max_kl: float | None = option(None, "instead: the most KL to the reference, nats per token")
    max_perplexity_ratio: float | None = option(None, "instead: the most perplexity over the reference's")
    runs: tuple[Path, ...] = option((), "run folders of evaluate, recover or bench: measured figures")
    run: Path | None = option(None, "write the record and a report here")

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
