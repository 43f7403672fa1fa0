"""What every format offers the rooms above: weights under Hugging Face names, dense or as stored.

A format hides how a file names and packs its tensors. Handing containers upwards was rejected: every
method would then have to ask which format it serves.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class WeightView(WeightSource, Protocol):
    """A WeightSource that shows another one with some tensors changed."""

    @property
    def inner(self) -> WeightSource:
        """What it looks at."""
        ...

    def changed(self) -> Set[str]:
        """Names of the tensors that are not as they are there."""
        ...


def underneath(weights: WeightSource) -> tuple[WeightSource, frozenset[str]]:
    """What `weights` looks at when all views are taken off, and the names that they change."""
    changed: set[str] = set()
    while isinstance(weights, WeightView):
        changed |= weights.changed()
        weights = weights.inner
    return weights, frozenset(changed)


@dataclass(frozen=True)
class ReplacedWeights:
    """A WeightView: the tensors in `given` come from there, made anew each time."""

    inner: WeightSource
    given: Mapping[str, Callable[[], Tensor]]

    def names(self) -> tuple[str, ...]:
        """The inner names."""
        return self.inner.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """The inner shape."""
        return self.inner.shape(name)

    def get(self, name: str) -> Tensor:
        """What is given, else the inner tensor."""
        return self.given[name]() if name in self.given else self.inner.get(name)

    def stored(self, module: str) -> StoredWeight | None:
        """The inner one, None for what is given."""
        return None if f"{module}.weight" in self.given else self.inner.stored(module)

    def changed(self) -> Set[str]:
        """What is given."""
        return self.given.keys()
