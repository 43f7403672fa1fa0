"""Where a sweep keeps what each trial rounded: a candidate bank for each trial, and the scales beside it.

Weights that were scaled before rounding have one more part than a bank knows, so it stands in a file of its
own. The files are only there until the sweep of their choice is finished: a record needs none of them.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save

from quantriage.errors import ResumeError
from quantriage.formats.bank import CandidateBank
from quantriage.methods.awq import ScaledWeight
from quantriage.model.site import Site
from quantriage.numerics.schemes import Scheme
from quantriage.records.atomic import write_bytes


class TrialStore:
    """Rounded weights of one choice by trial number, block and site. Reading loads one weight."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, trial: int, block: int, weights: Mapping[str, ScaledWeight]) -> str:
        """Store one block of one trial; returns the sha256 of its codes."""
        folder = self._folder / str(trial)
        bank = CandidateBank(folder)
        digest = bank.write(block, {(n, w.quantized.scheme): w.quantized for n, w in weights.items()})
        # Layers of one input hold the same tensor, which safetensors refuses to store twice without a copy.
        scales = {n: w.input_scale.clone() for n, w in weights.items() if w.input_scale is not None}
        write_bytes(self._scales(trial, block), save(scales))
        return digest

    def read(self, trial: int, site: Site, scheme: Scheme) -> ScaledWeight:
        """One weight. Raises ResumeError if the files of a finished sweep were already removed."""
        if not self._scales(trial, site.block).is_file():
            raise ResumeError(
                f"{self._folder}: the weights of this finished sweep are gone, and not all that is asked of "
                "them now was measured; choose another run folder"
            )
        quantized = CandidateBank(self._folder / str(trial)).read(site.block, site.name, scheme)
        with safe_open(self._scales(trial, site.block), framework="pt") as file:
            scale = file.get_tensor(site.name) if site.name in file.keys() else None  # noqa: SIM118
        return ScaledWeight(quantized, scale)

    def clear(self) -> None:
        """Remove all files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _scales(self, trial: int, block: int) -> Path:
        return self._folder / str(trial) / f"scales-{block:05d}.safetensors"
