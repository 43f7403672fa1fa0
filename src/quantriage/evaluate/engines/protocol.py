"""What is asked of a serving engine and what it answers: the log-probabilities it gives a text's own tokens.

Prompts cross as token ids, so that no tokenizer stands between two engines, and only the log-probability of
the token that follows is asked for: every serving engine can give it, where few give whole rows of logits.
An engine that does have them hands them to a visitor, one sequence at a time, and a full KL can be taken.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

AUTO = "auto"
DTYPES = (AUTO, "float32", "bfloat16", "float16")
LEAST_LOGPROB = -100.0  # stands for a log-probability that is infinite or not a number

LogitsVisitor = Callable[[int, Tensor], None]
"""Number of a sequence, its logits [length - 1, vocab] in float32 for the tokens from the second on."""


@dataclass(frozen=True, eq=False)
class EngineQuestion:
    """Which file to run on which tokens.

    model: a folder, or the .gguf file. kind: as `Checkpoint.kind`. tokens: int64 [sequences, length].
    dtype: one of DTYPES; "auto" is what the engine itself would choose for the file.
    options: settings of the engine by its own names, such as "sliding_window" or "kv_cache_dtype".
    """

    model: Path
    kind: str
    tokens: Tensor
    dtype: str = AUTO
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class EngineAnswer:
    """Log-probabilities float32 [sequences, length - 1], NaN where the engine was not asked.

    engine: name and version. dtype: what it computed in. broken: how many came back infinite or not a number;
    they stand in `logprobs` as LEAST_LOGPROB.
    """

    engine: str
    dtype: str
    logprobs: Tensor
    broken: int = 0


class Engine(Protocol):
    """A way of running a checkpoint that is not ours."""

    @property
    def name(self) -> str:
        """As in the registry."""
        ...

    def refuses(self, kind: str) -> str | None:
        """Why the engine cannot run a checkpoint of this kind; None if it should."""
        ...

    def ask(self, question: EngineQuestion, visit: LogitsVisitor | None = None) -> EngineAnswer:
        """Run the engine. `visit` is called only by engines that give logits. Raises EngineError."""
        ...


def answer_of(engine: str, dtype: str, logprobs: Tensor, asked: Tensor) -> EngineAnswer:
    """An answer whose unusable figures are counted and bounded.

    logprobs: float [sequences, length - 1]. asked: bool, likewise.
    """
    broken = asked & ~torch.isfinite(logprobs)
    bounded = logprobs.float().clamp(min=LEAST_LOGPROB)
    bounded = torch.where(broken, torch.full_like(bounded, LEAST_LOGPROB), bounded)
    bounded = torch.where(asked, bounded, torch.full_like(bounded, torch.nan))
    return EngineAnswer(engine, dtype, bounded, int(broken.sum()))
