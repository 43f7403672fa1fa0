"""What every format offers the rooms above: weights under Hugging Face names, dense or as stored.

A format hides how a file names and packs its tensors. Handing containers upwards was rejected: every
method would then have to ask which format it serves.
"""

from typing import Protocol

from torch import Tensor

from quantriage.numerics.stored_weight import StoredWeight


class WeightSource(Protocol):
    """A model's weights, read lazily, one at a time."""

    def names(self) -> tuple[str, ...]:
        """Tensor names as in a Hugging Face checkpoint: model.layers.0.mlp.down_proj.weight."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor. Raises CheckpointError for an unknown name."""
        ...

    def get(self, name: str) -> Tensor:
        """The dense tensor: as stored, or float32 with the exact product if it is stored quantized."""
        ...

    def stored(self, module: str) -> StoredWeight | None:
        """What is stored for a module's weight (its name without ".weight"); None if it is dense."""
        ...
