"""The engines by name: to add one, write its file and its line."""

from collections.abc import Callable, Mapping
from pathlib import Path

from quantriage.errors import UsageError
from quantriage.evaluate.engines.llama_cpp import llama_cpp_engine
from quantriage.evaluate.engines.protocol import Engine
from quantriage.evaluate.engines.transformers import transformers_engine
from quantriage.evaluate.engines.vllm import vllm_engine

Maker = Callable[[Path, float], Engine]
"""(Python of the engine's environment, seconds it may take) -> engine."""

ENGINES: dict[str, Maker] = {
    "transformers": transformers_engine,
    "vllm": vllm_engine,
    "llama.cpp": llama_cpp_engine,
}
IN_PROCESS: dict[str, Callable[[], Engine]] = {
    "transformers": lambda: transformers_engine(None, 0.0),
}


def make_engine(name: str, pythons: Mapping[str, Path], seconds: float) -> Engine:
    """The engine `name`. pythons: by engine, "" for every engine that cannot run in this process.

    Raises UsageError for an unknown name or an environment that is needed and not given.
    """
    if name not in ENGINES:
        raise UsageError(f"--engine {name}: unknown; expected one of {', '.join(ENGINES)}")
    python = pythons.get(name)
    if python is None and name in IN_PROCESS:
        return IN_PROCESS[name]()
    python = python or pythons.get("")
    if python is None:
        raise UsageError(
            f"--engine {name}: runs in an environment of its own; give its Python with --engine-python PATH"
        )
    return ENGINES[name](python, seconds)
