"""Two sources seen as one: the hybrid model that sensitivity, bisect and mixed precision all evaluate.

Copying tensors into a third checkpoint was rejected: a hybrid exists for one evaluation, and this costs
nothing to make.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from quantriage.checkpoint.source import TensorMeta, TensorSource
from quantriage.errors import CheckpointError
from quantriage.records.digest import combined_digest


@dataclass(frozen=True)
class Overlay:
    """`base`, with the tensors `covered` taken from `top`. Use `overlay` to make one."""

    base: TensorSource
    top: TensorSource
    covered: frozenset[str]

    def names(self) -> tuple[str, ...]:
        """The names of the base."""
        return self.base.names()

    def meta(self, name: str) -> TensorMeta:
        """Meta of the tensor that would be read."""
        return self._side(name).meta(name)

    def get(self, name: str) -> Tensor:
        """The tensor of the top if covered, else of the base."""
        return self._side(name).get(name)

    def digest(self) -> str:
        """sha256 over both digests and the covered names."""
        names = ((name, "") for name in sorted(self.covered))
        return combined_digest([("base", self.base.digest()), ("top", self.top.digest()), *names])

    def _side(self, name: str) -> TensorSource:
        return self.top if name in self.covered else self.base


def overlay(base: TensorSource, top: TensorSource, names: Iterable[str]) -> Overlay:
    """Cover `names` of `base` with those of `top`; each must exist in both with one shape."""
    covered = frozenset(names)
    for name in sorted(covered):
        below, above = base.meta(name).shape, top.meta(name).shape
        if below != above:
            raise CheckpointError(
                f"tensor {name!r}: shape {below} below and {above} on top cannot be swapped"
            )
    return Overlay(base, top, covered)
