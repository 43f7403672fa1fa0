"""compressed-tensors `pack-quantized`: a QuantizedTensor to named tensors and back, exactly.

Pure functions from one module's weight to the tensors stored for it, without a model or a config, so that
the stream can write a module as soon as it is rounded. Stored beside `weight_packed` are the scale, for an
asymmetric grid the zero point (packed along the output rows; one signed byte per tensor), and the logical
shape. compressed-tensors thinks in signed codes; packing adds 2**(bits-1), which makes them ours. Written is
the padded layout of release 0.17; the dense one of later releases is read too (see bit_packing).

A loader casts scales to the dtype it runs the model in, so store them in the dtype of config.json.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from quantriage.errors import BudgetError, CheckpointError
from quantriage.formats.bit_packing import is_padded, pack, padded_width, unpack_dense, unpack_padded
from quantriage.formats.compressed_parts import (
    PACKED,
    SCALE,
    SHAPE,
    ZERO_POINT,
    StoredScheme,
    column_group,
    fit,
)
from quantriage.numerics.coded_weight import CodedWeight, PerBlock, coded
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import SCALE_BITS, IntGrid, PerTensor, ScaleDtype, Scheme

FORMAT = "pack-quantized"
_SHAPE_BYTES = 16  # int64 [2]
_SCALE_DTYPES: dict[torch.dtype, ScaleDtype] = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
}


def supports(scheme: Scheme, shape: tuple[int, ...], transposed: bool) -> str | None:
    """None, or why a weight of `shape` [out, in] cannot be stored so. `transposed`: Conv1D's [in, out]."""
    if transposed:
        return "stored transposed [in, out] (Conv1D); compressed-tensors loads nn.Linear weights only"
    if scheme.in_blocks:
        return "a GGUF block type; compressed-tensors stores integers, the target llama.cpp GGUF"
    if len(shape) != 2:
        return f"{len(shape)} dimensions; compressed-tensors packs [out, in] weights"
    try:
        scheme.group_width(shape[1])
    except BudgetError as error:
        return str(error)
    return None


def stored_bytes(scheme: Scheme, shape: tuple[int, int]) -> int:
    """Bytes of all tensors stored for a weight of `shape` [out, in], padding and shape included."""
    rows, columns = shape
    bits = scheme.grid.bits
    scales = scheme.scale_count(shape)
    total = (
        rows * padded_width(columns, bits) * 4 + scales * SCALE_BITS[scheme.scale_dtype] // 8 + _SHAPE_BYTES
    )
    if scheme.grid.symmetric:
        return total
    if isinstance(scheme.granularity, PerTensor):
        return total + 1
    return total + padded_width(rows, bits) * (scales // rows) * 4


def write(module: str, weight: QuantizedTensor) -> dict[str, Tensor]:
    """The tensors stored for `module`, by full name."""
    bits = weight.scheme.grid.bits
    per_tensor = isinstance(weight.scheme.granularity, PerTensor)
    tensors = {
        PACKED: pack(weight.codes, bits),
        SCALE: weight.scale.reshape(1) if per_tensor else weight.scale,
        SHAPE: torch.tensor(weight.shape, dtype=torch.int64),
    }
    if weight.zero_point is not None and per_tensor:
        signed = weight.zero_point.to(torch.int16) - weight.scheme.grid.center
        tensors[ZERO_POINT] = signed.to(torch.int8).reshape(1)
    elif weight.zero_point is not None:
        tensors[ZERO_POINT] = pack(weight.zero_point.T, bits).T.contiguous()
    return {f"{module}.{name}": tensor for name, tensor in tensors.items()}


def read(module: str, scheme: Scheme, tensors: Mapping[str, Tensor]) -> QuantizedTensor:
    """Inverse of `write`, for tensors by their full names; the scale's dtype is the stored one.

    Raises CheckpointError if the tensors do not fit each other or the scheme.
    """
    packed = _fetch(module, PACKED, tensors)
    scale = _fetch(module, SCALE, tensors)
    rows, columns = _logical_shape(module, _fetch(module, SHAPE, tensors), packed)
    if scale.dtype not in _SCALE_DTYPES:
        raise CheckpointError(f"{module}: scale of {scale.dtype}; float16, bfloat16 or float32 are read")
    scheme = replace(scheme, scale_dtype=_SCALE_DTYPES[scale.dtype])
    refusal = supports(scheme, (rows, columns), transposed=False)
    if refusal is not None:
        raise CheckpointError(f"{module}: {refusal}")
    scale = fit(module, SCALE, scale, scheme.granularity, (rows, columns))
    bits = scheme.grid.bits
    try:
        padded = is_padded(packed, bits, columns)
        codes = (unpack_padded if padded else unpack_dense)(packed, bits, columns)
        zero_point = None
        if not scheme.grid.symmetric:
            stored = _fetch(module, ZERO_POINT, tensors)
            zero_point = _zero_point(scheme, stored, (scale.shape[0], scale.shape[1]), padded)
    except ValueError as error:
        raise CheckpointError(f"{module}: {error}") from error
    return QuantizedTensor(scheme, codes, scale, zero_point)


def read_coded(module: str, scheme: StoredScheme, parts: Mapping[str, Tensor]) -> CodedWeight:
    """`read` for parts by their short names, with the order of columns that GPTQ's `weight_g_idx` gives."""
    assert isinstance(scheme.grid, IntGrid)
    assert not isinstance(scheme.layout, PerBlock)
    tensors = {f"{module}.{part}": tensor for part, tensor in parts.items()}
    weight = read(module, Scheme(scheme.grid, scheme.layout), tensors)
    return coded(weight, column_group(module, scheme, parts, weight.shape[1]))


def _zero_point(scheme: Scheme, stored: Tensor, shape: tuple[int, int], padded: bool) -> Tensor:
    """Unsigned zero points of `shape` from what is stored. Raises ValueError if it does not fit."""
    bits = scheme.grid.bits
    if isinstance(scheme.granularity, PerTensor):
        if stored.numel() != 1 or stored.dtype != torch.int8:
            raise ValueError(f"zero point of {stored.dtype} {tuple(stored.shape)}; expected int8 (1,)")
        return (stored.to(torch.int16) + scheme.grid.center).to(torch.uint8).reshape(1, 1)
    rows, groups = shape
    if stored.dtype != torch.int32 or stored.ndim != 2 or stored.shape[1] != groups:
        raise ValueError(f"zero point of {stored.dtype} {tuple(stored.shape)}; expected int32 (*, {groups})")
    words = stored.T.contiguous()
    fits_padded = is_padded(words, bits, rows)  # also checks the width
    unpacker = unpack_padded if padded and fits_padded else unpack_dense
    return unpacker(words, bits, rows).T.contiguous()


def _logical_shape(module: str, stored: Tensor, packed: Tensor) -> tuple[int, int]:
    """The weight's [out, in], checked against the packed words."""
    flat = tuple(stored.shape) == (2,) and stored.dtype == torch.int64
    if not flat or packed.ndim != 2 or packed.dtype != torch.int32 or not packed.numel():
        raise CheckpointError(
            f"{module}: {PACKED} is {packed.dtype} {tuple(packed.shape)} and {SHAPE} {tuple(stored.shape)} "
            f"of {stored.dtype}; expected int32 words of two dimensions and two sizes in int64"
        )
    rows, columns = (int(size) for size in stored.tolist())
    if rows != packed.shape[0] or not 0 < columns <= packed.shape[1] * 16:
        raise CheckpointError(f"{module}: {SHAPE} says {[rows, columns]}, {PACKED} has {list(packed.shape)}")
    return rows, columns


def _fetch(module: str, part: str, tensors: Mapping[str, Tensor]) -> Tensor:
    name = f"{module}.{part}"
    if name not in tensors:
        raise CheckpointError(f"{module}: {part} is missing from the checkpoint")
    return tensors[name]
