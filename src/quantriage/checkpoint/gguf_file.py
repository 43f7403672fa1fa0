"""A GGUF file as a TensorSource: each tensor read when asked for, block types dequantized exactly.

The arithmetic is gguf-py's `quants.dequantize`, the reference of the format, applied to some rows at a
time: whole tensors through it take several times their float32 size in temporaries. Rewriting 26 block
types was rejected; ours would only have to be proven equal to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from quantriage.checkpoint.gguf_header import GGUFTensor, Scalar, read_gguf_header
from quantriage.checkpoint.mapped import map_bytes, map_tensor
from quantriage.checkpoint.source import TensorMeta
from quantriage.errors import CheckpointError
from quantriage.records.digest import file_digest

_CHUNK_BYTES = 4 << 20  # float32 bytes dequantized at once; gguf-py's temporaries stay below 32 MB

PLAIN_TYPES: dict[GGMLQuantizationType, torch.dtype] = {
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F64: torch.float64,
    GGMLQuantizationType.I8: torch.int8,
    GGMLQuantizationType.I16: torch.int16,
    GGMLQuantizationType.I32: torch.int32,
    GGMLQuantizationType.I64: torch.int64,
}
# Q8_1 and Q8_K only ever hold activations, and gguf-py has no reference for Q1_0
UNREADABLE_TYPES = frozenset(kind for kind in GGMLQuantizationType if kind.name in ("Q8_1", "Q8_K", "Q1_0"))


@dataclass(frozen=True)
class GGUFSource:
    """Tensors of one GGUF file under their GGUF names. Use `open_gguf`."""

    path: Path
    scalars: Mapping[str, Scalar]
    tensors: Mapping[str, GGUFTensor]

    def names(self) -> tuple[str, ...]:
        """All tensor names, as the file spells them ("blk.0.attn_q.weight")."""
        return tuple(self.tensors)

    def meta(self, name: str) -> TensorMeta:
        """Shape in torch's order, stored type and stored bytes."""
        return self._find(name).meta

    def get(self, name: str) -> Tensor:
        """The tensor: plain types as stored, block types as float32. Peak memory: it and 32 MB."""
        tensor = self._find(name)
        dtype = PLAIN_TYPES.get(tensor.kind)
        if dtype is not None:
            return map_tensor(self.path, tensor.begin, tensor.meta.shape, dtype)
        return self._dequantized(tensor)

    def raw_rows(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The stored bytes of a block type, [rows, bytes of a row], mapped."""
        tensor = self._find(name)
        rows = prod(tensor.meta.shape[:-1])
        raw = np.frombuffer(map_bytes(self.path, tensor.begin, tensor.meta.nbytes), dtype=np.uint8)
        return raw.reshape(rows, tensor.meta.nbytes // rows)

    def digest(self) -> str:
        """sha256 of the file."""
        return self._digest

    @property
    def file_bytes(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    @cached_property
    def _digest(self) -> str:
        return file_digest(self.path)

    def _dequantized(self, tensor: GGUFTensor) -> Tensor:
        """float32 values of a block type, some rows at a time."""
        columns = tensor.meta.shape[-1]
        raw = self.raw_rows(tensor.meta.name)
        rows = len(raw)
        values = np.empty((rows, columns), dtype=np.float32)
        step = max(1, _CHUNK_BYTES // (4 * columns))
        with np.errstate(all="ignore"):  # a bad scale gives inf or NaN, which the caller reports by name
            for start in range(0, rows, step):
                values[start : start + step] = dequantize(raw[start : start + step], tensor.kind)
        return torch.from_numpy(values).reshape(tensor.meta.shape)

    def _find(self, name: str) -> GGUFTensor:
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: no tensor {name!r} in this file")
        return self.tensors[name]


def open_gguf(path: Path) -> GGUFSource:
    """Open a GGUF file; its header is checked at once. Raises CheckpointError."""
    header = read_gguf_header(path)
    if not header.tensors:
        raise CheckpointError(f"{path}: holds no tensor (a vocabulary-only file?)")
    for tensor in header.tensors.values():
        if tensor.kind in UNREADABLE_TYPES:
            raise CheckpointError(
                f"{path}: tensor {tensor.meta.name!r} has type {tensor.kind.name}, which gguf-py cannot "
                "dequantize; make the file with another type"
            )
    return GGUFSource(path, header.scalars, header.tensors)


def refuse_split(path: Path, scalars: Mapping[str, Scalar]) -> None:
    """Raise CheckpointError for one file of a model that is split over several."""
    count = scalars.get("split.count", 0)
    if isinstance(count, int) and count > 1:
        raise CheckpointError(
            f"{path}: is one of {count} files of a split GGUF; join them first (llama-gguf-split --merge)"
        )
