"""A safetensors folder in which some weights are stored in parts: a WeightSource for any such format.

A format brings one small record for each weight that it packs, which knows its parts and checks them; names,
shapes and the dense rest are the same for all. Parts are checked by their headers before a byte is mapped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from quantriage.checkpoint.safetensors_source import SafetensorsSource
from quantriage.errors import CheckpointError
from quantriage.numerics.stored_weight import StoredWeight

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class PackedWeight(Protocol):
    """One weight stored in parts; its methods raise CheckpointError if the parts do not fit."""

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape [out, in], already held against the size of what is stored."""
        ...

    def dequantize(self) -> Tensor:
        """float32 [out, in]."""
        ...

    def stored(self) -> StoredWeight:
        """What is stored."""
        ...


@dataclass(frozen=True)
class PackedModules:
    """A WeightSource over tensors of which some, by the name of the whole weight, are packed."""

    source: SafetensorsSource
    packed: Mapping[str, PackedWeight]
    visible: tuple[str, ...]

    def names(self) -> tuple[str, ...]:
        """Tensor names with every packed weight as one."""
        return self.visible

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole weight."""
        return self.packed[name].shape if name in self.packed else self.source.meta(name).shape

    def get(self, name: str) -> Tensor:
        """The tensor as stored, or the float32 product of a packed weight."""
        return self.packed[name].dequantize() if name in self.packed else self.source.get(name)

    def stored(self, module: str) -> StoredWeight | None:
        """The packed weight of a module, or None if it is stored dense."""
        weight = self.packed.get(f"{module}.weight")
        return None if weight is None else weight.stored()


def part(
    source: SafetensorsSource, name: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...] | None
) -> Tensor:
    """One stored part, of one of `dtypes` and of `shape` unless that is None. Raises CheckpointError."""
    if name not in source.entries:
        raise CheckpointError(f"{name}: is missing from the checkpoint; fetch it again")
    entry = source.entries[name][1]
    wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    if entry.dtype not in dtypes or (shape is not None and entry.meta.shape != shape):
        raise CheckpointError(
            f"{name}: is {entry.meta.dtype} {entry.meta.shape}; expected {wanted} "
            f"{shape if shape is not None else ''}".rstrip()
        )
    return source.get(name)


def bytes_of(source: SafetensorsSource, names: tuple[str, ...]) -> int:
    """Stored bytes of the parts that exist."""
    return sum(source.meta(name).nbytes for name in names if name in source.entries)
