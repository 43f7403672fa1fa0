"""transformers' own loading of a quantized file, in this process or in an environment of its own.

In process it gives whole rows of logits, so that a full KL can be taken. Peak memory: the whole model as
transformers holds it, beside the logits of one sequence.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from quantriage.errors import EngineError
from quantriage.evaluate.engines.outside import OutsideEngine
from quantriage.evaluate.engines.protocol import EngineAnswer, EngineQuestion, LogitsVisitor, answer_of
from quantriage.evaluate.engines.scripts import ask_transformers

NAME = "transformers"
_SCRIPT = "ask_transformers.py"


@dataclass(frozen=True)
class TransformersEngine:
    """`from_pretrained` and a forward pass for each sequence."""

    name: str = NAME

    def refuses(self, kind: str) -> str | None:
        """Nothing is known beforehand: it depends on the packages that are installed."""
        return _refuses(kind)

    def ask(self, question: EngineQuestion, visit: LogitsVisitor | None = None) -> EngineAnswer:
        """Load, run each sequence, let go. Raises EngineError."""
        try:
            model = ask_transformers.load(str(question.model), question.dtype, question.options)
            rows = []
            for number, tokens in enumerate(question.tokens.tolist()):
                logits = ask_transformers.next_logits(model, tokens)
                rows.append(ask_transformers.logprobs_of(logits, tokens))
                if visit is not None:
                    visit(number, logits)
        except (
            ImportError,
            OSError,
            ValueError,
            RuntimeError,
            KeyError,
            TypeError,
            AttributeError,
            NotImplementedError,
        ) as error:
            reason = str(error).strip()[:600] or type(error).__name__
            raise EngineError(
                f"{NAME}: {question.model} cannot be run ({reason}); its packages may be missing here: give "
                f"an environment that has them with --engine-python {NAME}=PATH"
            ) from error
        values = torch.tensor(rows)
        return answer_of(
            ask_transformers.version(),
            ask_transformers.dtype_name(model),
            values,
            torch.ones_like(values, dtype=torch.bool),
        )


def transformers_engine(python: Path | None, seconds: float) -> TransformersEngine | OutsideEngine:
    """In process, or in the environment of `python`."""
    if python is None:
        return TransformersEngine()
    return OutsideEngine(NAME, _SCRIPT, python, seconds, _refuses)


def _refuses(kind: str) -> str | None:  # noqa: ARG001 - the registry asks every engine alike
    return None
