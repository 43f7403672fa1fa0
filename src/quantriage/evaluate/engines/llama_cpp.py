"""llama.cpp through its server, as the package xllamacpp builds it.

Its server gives no log-probabilities of a prompt's own tokens, but those of the next token after any
prompt, and keeps the prompt's cache: each token costs one request. So a spread sample of tokens is asked.
"""

from pathlib import Path

from quantriage.evaluate.engines.outside import OutsideEngine

NAME = "llama.cpp"
MOST_TOKENS = 256


def llama_cpp_engine(python: Path, seconds: float) -> OutsideEngine:
    """llama.cpp in the environment of `python`."""
    return OutsideEngine(NAME, "ask_llama_cpp.py", python, seconds, _refuses, MOST_TOKENS)


def _refuses(kind: str) -> str | None:
    return None if kind == "gguf" else f"llama.cpp reads GGUF files, and this checkpoint is {kind}"
