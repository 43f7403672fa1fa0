"""What every format offers the rooms above: weights under Hugging Face names, dense or as stored.

A format hides how a file names and packs its tensors. Handing containers upwards was rejected: every
method would then have to ask which format it serves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class ReplacedWeights:
    """A WeightSource: the tensors in `given` come from there, made anew each time, others from `origin`."""

    origin: WeightSource
    given: Mapping[str, Callable[[], Tensor]]

    def names(self) -> tuple[str, ...]:
        """The origin's."""
        return self.origin.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """The origin's."""
        return self.origin.shape(name)

    def get(self, name: str) -> Tensor:
        """What is given, else the origin's."""
        return self.given[name]() if name in self.given else self.origin.get(name)

    def stored(self, module: str) -> StoredWeight | None:
        """The origin's, None for what is given."""
        return None if f"{module}.weight" in self.given else self.origin.stored(module)
