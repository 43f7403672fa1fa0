"""compressed-tensors `nvfp4-pack-quantized` and `mxfp4-pack-quantized`: pairs of E2M1 codes to a byte.

The first of two columns is in the low half. NVFP4 has an E4M3 scale for each 16 columns and one float32
global scale, by which the stored scales are *divided* (upstream multiplied them by it to fill E4M3's range;
other tools store the reciprocal). MXFP4 has an exponent for each 32 columns and no global scale; should one
be stored all the same, it counts, as upstream reads both by one function.

Upstream forms the same products in float32 and rounds the result to bfloat16. An exponent of 255 is NaN here,
as the MX specification says, and infinite upstream.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from quantriage.errors import CheckpointError
from quantriage.formats.compressed_parts import (
    GLOBAL_SCALE,
    PACKED,
    SCALE,
    StoredScheme,
    fetch,
    fit,
    matrix,
)
from quantriage.formats.compressed_plain import exponent_scale
from quantriage.numerics.coded_weight import CodedWeight
from quantriage.numerics.float_grids import E2M1

NVFP4, MXFP4 = "nvfp4-pack-quantized", "mxfp4-pack-quantized"


def read(module: str, scheme: StoredScheme, parts: Mapping[str, Tensor]) -> CodedWeight:
    """The weight of one module. Raises CheckpointError if its parts do not fit each other or the scheme."""
    codes = unpack_pairs(matrix(module, PACKED, fetch(module, PACKED, parts), (torch.uint8,)))
    rows, columns = codes.shape
    stored = fit(module, SCALE, fetch(module, SCALE, parts), scheme.layout, (rows, columns))
    if scheme.format == MXFP4:
        scale, dtype = exponent_scale(module, stored), "float8_e8m0fnu"
    elif stored.dtype == torch.float8_e4m3fn:
        scale, dtype = stored.to(torch.float32), "float8_e4m3fn"
    else:
        raise CheckpointError(f"{module}: scale of {stored.dtype}; {scheme.format} has float8_e4m3fn")
    if scheme.format == NVFP4 or GLOBAL_SCALE in parts:
        scale = scale / _global_scale(module, parts)
    return CodedWeight(E2M1, scheme.layout, codes, scale, dtype)


def unpack_pairs(packed: Tensor) -> Tensor:
    """uint8 [out, in / 2] to codes uint8 [out, in], low half first."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)


def _global_scale(module: str, parts: Mapping[str, Tensor]) -> Tensor:
    stored = fetch(module, GLOBAL_SCALE, parts)
    if stored.dtype != torch.float32 or stored.numel() != 1:
        raise CheckpointError(
            f"{module}: {GLOBAL_SCALE} is {stored.dtype} {tuple(stored.shape)}; expected float32 (1,)"
        )
    return stored.reshape(())
