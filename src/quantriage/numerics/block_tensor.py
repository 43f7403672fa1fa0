"""A weight as GGUF blocks: the counterpart of QuantizedTensor for schemes that name a block type."""

from dataclasses import dataclass

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from quantriage.numerics.schemes import InBlocks, Scheme

_CHUNK = 1 << 20  # weights dequantized at once: gguf-py's temporaries stay below 32 MB


@dataclass(frozen=True, eq=False)
class BlockTensor:
    """raw: uint8 [out, bytes of a row], rows in the order of the weight; blocks run along rows."""

    scheme: Scheme
    raw: Tensor

    def __post_init__(self) -> None:
        assert self.raw.ndim == 2
        assert self.raw.shape[1] % self.scheme.block.nbytes == 0

    @property
    def kind(self) -> str:
        """The type's name in GGUF."""
        assert isinstance(self.scheme.granularity, InBlocks)
        return self.scheme.granularity.kind

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape (out, in)."""
        block = self.scheme.block
        return self.raw.shape[0], self.raw.shape[1] // block.nbytes * block.width

    def dequantize(self) -> Tensor:
        """What gguf-py, the reference of the format, reads: float32 [out, in]."""
        rows, columns = self.shape
        values = torch.empty(rows, columns)
        step = max(1, _CHUNK // columns)
        for start in range(0, rows, step):
            part = dequantize(self.raw[start : start + step].numpy(), GGMLQuantizationType[self.kind])
            values[start : start + step] = torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32))
        return values
