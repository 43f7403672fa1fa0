"""One quantized weight as its format stores it: what a lint, a repair and a byte count look at.

Values come from the format's own `get`, whose arithmetic is exact for that format; this record promises none.
One record with optional parts was chosen over a class for each format, so that a check is written once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme


@dataclass(frozen=True)
class StoredWeight:
    """A weight of logical `shape` [out, in].

    layout: the format's word: "gptq-v1", "awq", "pack-quantized", "nf4", "Q4_K", ...
    levels: code points that the stored width can hold.
    nbytes: everything stored for the weight: codes, scales, zero points, shapes.
    codes: integer dtype [out, in], 0 .. levels - 1; None where a code is not one number a weight (IQ types).
    scale: effective scales in float32, in the format's own shape; None if there is none.
    scale_dtype: torch's name of the dtype in which scales are stored.
    zero_point: integer codes of zero, unpacked, in `scale`'s shape; offset: real minima, likewise.
    column_group: int64 [in], the group of each column, where columns are not grouped in runs (g_idx).
    scheme: the integer scheme, where groups are runs of columns and zero points integers, else None.
    points: float32 [levels], what each code stands for before its scale, where that is a table (NF4, IQ4).
    """

    layout: str
    shape: tuple[int, int]
    levels: int
    nbytes: int
    codes: Tensor | None
    scale: Tensor | None
    scale_dtype: str
    zero_point: Tensor | None = None
    offset: Tensor | None = None
    column_group: Tensor | None = None
    scheme: Scheme | None = None
    points: Tensor | None = None

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])


def stored_weight(layout: str, quantized: QuantizedTensor, nbytes: int) -> StoredWeight:
    """The record of an integer weight in contiguous groups."""
    scale_dtype = str(quantized.scale.dtype).removeprefix("torch.")
    return StoredWeight(
        layout=layout,
        shape=quantized.shape,
        levels=quantized.scheme.grid.levels,
        nbytes=nbytes,
        codes=quantized.codes,
        scale=quantized.scale.to(torch.float32),
        scale_dtype=scale_dtype,
        zero_point=quantized.zero_point,
        scheme=quantized.scheme,
    )
