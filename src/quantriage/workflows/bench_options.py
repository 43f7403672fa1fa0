"""What `bench` takes; as in options.py, no torch here."""

from dataclasses import dataclass
from pathlib import Path

from quantriage.errors import UsageError
from quantriage.workflows.options import option, required


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """`bench`: how fast a quantized model is against the unquantized one, on this machine, and why."""

    checkpoints: tuple[str, ...] = required(
        "models to time, in any format; an unquantized one is a reference"
    )
    reference: tuple[str, ...] = option(
        (), "the unquantized model, in each format that an engine needs (a folder, and a .gguf for llama.cpp)"
    )
    engine: tuple[str, ...] = option(("transformers",), "what runs them: transformers, vllm, llama.cpp")
    engine_python: tuple[str, ...] = option(
        (), "Python of the environment that has the engines, or ENGINE=PATH for one of them"
    )
    engine_option: tuple[str, ...] = option((), "a setting of the engine by its own name, NAME=VALUE")
    dtype: str = option("auto", "what engines compute in: auto, float32, bfloat16, float16")
    prompt: int = option(128, "tokens of each prompt")
    new: int = option(32, "tokens generated after the first")
    rounds: int = option(8, "measured rounds; engines take turns within each")
    warmup: int = option(2, "rounds run before and thrown away")
    threads: int = option(0, "threads of each engine (default: the cores this process may use)")
    device: str = option("cpu", "torch device to run on")
    engine_seconds: float = option(300.0, "longest wait for an engine: to load, or for one round")
    seed: int = option(0, "seed of the prompts' random tokens")
    run: Path | None = option(None, "write the record and a report here")

    def __post_init__(self) -> None:
        for name, least in (("prompt", 2), ("new", 1), ("rounds", 2), ("warmup", 0), ("threads", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name} {getattr(self, name)}: expected {least} or more")
        if not self.engine_seconds > 0:
            raise UsageError(f"--engine-seconds {self.engine_seconds}: expected more than 0")
