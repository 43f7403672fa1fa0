"""Unquantized safetensors checkpoints: names and tensors pass through as they are stored."""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.checkpoint.safetensors_source import SafetensorsSource
from quantriage.errors import CheckpointError
from quantriage.numerics.stored_weight import StoredWeight


@dataclass(frozen=True)
class DenseWeights:
    """A WeightSource over plain safetensors."""

    source: SafetensorsSource

    def names(self) -> tuple[str, ...]:
        """All tensor names of the files."""
        return self.source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape from the header."""
        return self.source.meta(name).shape

    def get(self, name: str) -> Tensor:
        """The tensor as stored."""
        return self.source.get(name)

    def stored(self, module: str) -> StoredWeight | None:  # noqa: ARG002
        """Nothing is quantized here."""
        return None


def majority_dtype(source: SafetensorsSource) -> torch.dtype:
    """The 16-, 32- or 64-bit float type that holds the most elements."""
    counts: dict[torch.dtype, int] = {}
    for _, entry in source.entries.values():
        if entry.dtype.is_floating_point and entry.dtype.itemsize > 1:
            counts[entry.dtype] = counts.get(entry.dtype, 0) + entry.meta.nbytes // entry.dtype.itemsize
    if not counts:
        raise CheckpointError(f"{source.files[0].parent}: no floating-point tensor; it is no language model")
    return max(counts, key=lambda dtype: counts[dtype])
