"""vLLM, by the log-probabilities of prompts: the engine that most quantized checkpoints are made for."""

from pathlib import Path

from quantriage.evaluate.engines.outside import OutsideEngine

NAME = "vllm"


def vllm_engine(python: Path, seconds: float) -> OutsideEngine:
    """vLLM in the environment of `python`."""
    return OutsideEngine(NAME, "ask_vllm.py", python, seconds, _refuses)


def _refuses(kind: str) -> str | None:
    return "vLLM for CPU reads no GGUF; use the engine llama.cpp" if kind == "gguf" else None
