"""What every container of tensors offers: names and shapes from the header, and one tensor at a time.

A source is opened by validating its header once; after that `get` reads exactly one tensor and keeps
nothing, so a caller that streams through a large checkpoint holds one tensor. Returning whole state
dicts, as most loaders do, was rejected: it makes memory a property of the file instead of the block.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class TensorMeta:
    """What a header says of one tensor. `dtype` is torch's name, or ggml's for block types ("Q4_K")."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


class TensorSource(Protocol):
    """Named tensors, read lazily."""

    def names(self) -> tuple[str, ...]:
        """All tensor names, in the order of the file."""
        ...

    def meta(self, name: str) -> TensorMeta:
        """Shape and dtype from the header alone. Raises CheckpointError for an unknown name."""
        ...

    def get(self, name: str) -> Tensor:
        """The tensor, on the CPU; the source keeps no reference to it."""
        ...

    def digest(self) -> str:
        """sha256 over the contents of the files, read in pieces."""
        ...
