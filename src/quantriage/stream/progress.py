"""The one callback through which long work says how far it is. The library itself never prints."""

from typing import Protocol


class Progress(Protocol):
    """Told the stage, the steps done and the steps in all; called often, so it must be cheap."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note that `done` of `total` steps of `stage` are finished."""


def silent(stage: str, done: int, total: int) -> None:
    """Progress that goes nowhere."""
