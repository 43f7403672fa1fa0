"""A model of two blocks with two texts, and the smallest `recover` and `quantize` that mean something."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.word_model import save_model, save_text
from quantriage.stream.progress import Progress
from quantriage.workflows.options import QuantizeOptions, RecoverOptions


@dataclass(frozen=True)
class Place:
    """A folder with `model`, and texts that share no passage."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def calibration(self) -> Path:
        return self.folder / "calibration.txt"

    @property
    def held_out(self) -> Path:
        return self.folder / "held-out.txt"

    def recover(self, out: Path, **changes: Any) -> RecoverOptions:
        sizes = {"sequences": 8, "length": 32, "selection_sequences": 4, "sensitivity_sequences": 4}
        sizes |= {"evaluation_sequences": 4, "evaluation_length": 48, "mixes": 2, "swaps": 1}
        given = {"model": str(self.model), "out": out, "bpw": 4.6, "target": "transformers"}
        texts = {"calibration": (self.calibration,), "evaluate": (self.held_out,)}
        return RecoverOptions(**given | texts | sizes | changes)

    def quantize(self, out: Path, **changes: Any) -> QuantizeOptions:
        given = {"model": str(self.model), "out": out, "calibration": (self.calibration,)}
        sizes = {"target": "transformers", "sequences": 4, "length": 32}
        return QuantizeOptions(**given | sizes | changes)


def make_place(folder: Path) -> Place:
    """Write the model and the texts."""
    save_model(folder / "model")
    save_text(folder / "calibration.txt", seed=1, words=3600)
    save_text(folder / "held-out.txt", seed=2, words=1200)
    return Place(folder)


def interrupt_at(stage: str, done: int) -> Progress:
    """Progress that stops the run where `done` steps of `stage` are done, as Ctrl-C does."""

    def progress(at: str, finished: int, total: int) -> None:
        if at == stage and finished == done:
            raise KeyboardInterrupt

    return progress


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file in a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}
