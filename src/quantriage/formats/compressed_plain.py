"""compressed-tensors formats that keep one number to an element: int8 and float8 weights beside their scales.

`int-quantized`, `float-quantized` and `naive-quantized` are one layout under three names (the first two are
for engines that quantize activations too), and `mxfp8-quantized` is the same with scales that are exponents.
Integers of fewer bits sit in int8 as they are. Signed codes get 2**(bits-1) added, which makes them ours.

Upstream multiplies in the scale's dtype, so its result is ours rounded once to that dtype. Releases up to
0.18 guess the block's height from the shapes of weight and scale, which is wrong where the last block is cut
short; the config's own block is used here, as in later releases and in engines.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from quantriage.errors import CheckpointError
from quantriage.formats.compressed_parts import (
    FLOAT_SCALES,
    SCALE,
    WEIGHT,
    ZERO_POINT,
    StoredScheme,
    column_group,
    fetch,
    fit,
    matrix,
)
from quantriage.numerics.coded_weight import CodedWeight
from quantriage.numerics.float_grids import E4M3, E5M2, decode_e8m0
from quantriage.numerics.schemes import IntGrid

INT, FLOAT, NAIVE, MXFP8 = "int-quantized", "float-quantized", "naive-quantized", "mxfp8-quantized"
FLOAT8 = {torch.float8_e4m3fn: E4M3, torch.float8_e5m2: E5M2}
_EXPONENTS = (torch.uint8, torch.float8_e8m0fnu)


def read(module: str, scheme: StoredScheme, parts: Mapping[str, Tensor]) -> CodedWeight:
    """The weight of one module. Raises CheckpointError if its parts do not fit each other or the scheme."""
    weight = fetch(module, WEIGHT, parts)
    if isinstance(scheme.grid, IntGrid):
        return _read_int(module, scheme, scheme.grid, weight, parts)
    weight = matrix(module, WEIGHT, weight, tuple(FLOAT8))
    rows, columns = weight.shape
    stored = fetch(module, SCALE, parts)
    scale = fit(module, SCALE, stored, scheme.layout, (rows, columns))
    return CodedWeight(
        grid=FLOAT8[weight.dtype],
        layout=scheme.layout,
        codes=weight.view(torch.uint8),
        scale=exponent_scale(module, scale) if scheme.format == MXFP8 else float_scale(module, scale),
        scale_dtype="float8_e8m0fnu" if scheme.format == MXFP8 else str(stored.dtype).removeprefix("torch."),
        column_group=column_group(module, scheme, parts, columns),
    )


def _read_int(
    module: str, scheme: StoredScheme, grid: IntGrid, weight: Tensor, parts: Mapping[str, Tensor]
) -> CodedWeight:
    weight = matrix(module, WEIGHT, weight, (torch.int8,))
    rows, columns = weight.shape
    stored = fetch(module, SCALE, parts)
    scale = float_scale(module, fit(module, SCALE, stored, scheme.layout, (rows, columns)))
    zero_point = None
    if not grid.symmetric:
        zero = fetch(module, ZERO_POINT, parts)
        if zero.dtype != torch.int8:
            raise CheckpointError(f"{module}: {ZERO_POINT} is {zero.dtype}; expected int8")
        fitted = fit(module, ZERO_POINT, zero, scheme.layout, (rows, columns))
        zero_point = _unsigned(module, ZERO_POINT, fitted, grid)
    elif ZERO_POINT in parts and bool(parts[ZERO_POINT].any()):  # early releases stored zeros
        raise CheckpointError(f"{module}: {ZERO_POINT} is not zero, but the config calls its group symmetric")
    return CodedWeight(
        grid=grid,
        layout=scheme.layout,
        codes=_unsigned(module, WEIGHT, weight, grid),
        scale=scale,
        scale_dtype=str(stored.dtype).removeprefix("torch."),
        zero_point=zero_point,
        column_group=column_group(module, scheme, parts, columns),
    )


def _unsigned(module: str, part: str, signed: Tensor, grid: IntGrid) -> Tensor:
    """int8 codes -2**(bits-1) .. 2**(bits-1) - 1 as uint8 from zero. Raises CheckpointError beyond them."""
    low, high = (int(edge) for edge in torch.aminmax(signed))
    if low < -grid.center or high >= grid.center:
        raise CheckpointError(
            f"{module}: {part} holds {low} to {high}, beyond the config's {grid.bits} bits "
            f"({-grid.center} to {grid.center - 1})"
        )
    return signed.contiguous().view(torch.uint8) + grid.center  # both wrap at 256, so the sum is right


def float_scale(module: str, stored: Tensor) -> Tensor:
    """A scale of 16 or 32 bits in float32. Raises CheckpointError."""
    if stored.dtype not in FLOAT_SCALES:
        raise CheckpointError(f"{module}: scale of {stored.dtype}; float16, bfloat16 or float32 are read")
    return stored.to(torch.float32)


def exponent_scale(module: str, stored: Tensor) -> Tensor:
    """A scale stored as E8M0 exponents, in float32. Raises CheckpointError."""
    if stored.dtype not in _EXPONENTS:
        raise CheckpointError(f"{module}: scale of {stored.dtype}; expected uint8 exponents")
    return decode_e8m0(stored.contiguous().view(torch.uint8))
