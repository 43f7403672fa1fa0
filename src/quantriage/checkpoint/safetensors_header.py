"""The header of a safetensors file, treated as hostile: nothing is believed before it is checked.

The format is eight bytes of header length, a JSON object, then the tensors' bytes. We parse it ourselves
instead of through the safetensors package so that each lie gets one line naming file and tensor, and so
that no number from the file is used for an allocation before it is compared with the file's size.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TypeGuard

import torch

from quantriage.checkpoint.source import TensorMeta
from quantriage.checkpoint.strict_json import LARGEST_JSON, parse_object
from quantriage.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_LENGTH_BYTES = 8
_MOST_DIMENSIONS = 64
_METADATA = "__metadata__"


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its meta, its torch dtype and where its bytes begin, from the file's start."""

    meta: TensorMeta
    dtype: torch.dtype
    begin: int


def read_header(path: Path) -> dict[str, Entry]:
    """All tensors of a safetensors file, fully checked against its size. Raises CheckpointError."""
    header, data_start, size = _parsed(path)
    entries = {
        name: _entry(path, name, value, data_start, size)
        for name, value in header.items()
        if name != _METADATA
    }
    _refuse_overlap(path, entries)
    return entries


def read_metadata(path: Path) -> dict[str, str]:
    """The free texts that a safetensors file carries beside its tensors. Raises CheckpointError.

    Read when asked for: only a few formats keep more there than the word "pt", and some keep a lot.
    """
    found = _parsed(path)[0].get(_METADATA, {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise CheckpointError(f"{path}: {_METADATA} is not an object of texts")
    return found


def _parsed(path: Path) -> tuple[dict[str, object], int, int]:
    """The header's JSON, where the tensors' bytes begin, and the size of the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(_LENGTH_BYTES)
            if len(prefix) < _LENGTH_BYTES:
                raise CheckpointError(
                    f"{path}: {size} bytes are no safetensors file; it is truncated, fetch it again"
                )
            length = int.from_bytes(prefix, "little")
            if length > min(size - _LENGTH_BYTES, LARGEST_JSON):
                raise CheckpointError(
                    f"{path}: header claims {length} bytes in a file of {size} (at most {LARGEST_JSON}); "
                    "it is truncated or no safetensors file, fetch it again"
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_object(text, f"{path}: header"), _LENGTH_BYTES + length, size


def _entry(path: Path, name: str, value: object, data_start: int, size: int) -> Entry:
    """Check one tensor of the header."""
    where = f"{path}: tensor {name[:200]!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: header entry needs exactly dtype, shape and data_offsets")
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(f"{where}: unknown dtype {value['dtype']!r}; known: {', '.join(DTYPES)}")
    shape, offsets = value["shape"], value["data_offsets"]
    if not _natural(shape) or len(shape) > _MOST_DIMENSIONS:
        raise CheckpointError(f"{where}: shape is not a list of sizes")
    if not _natural(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: data_offsets is not [begin, end]")
    begin, end = offsets
    if begin > end or data_start + end > size:
        raise CheckpointError(
            f"{where}: bytes {begin} to {end} do not lie in the {size - data_start} bytes of data; "
            "the file is truncated or its header lies, fetch it again"
        )
    if prod(max(length, 1) for length in shape) >= 1 << 60:
        raise CheckpointError(f"{where}: shape {tuple(shape)} is too large for any machine")
    expected = dtype.itemsize * prod(shape)
    if expected != end - begin:
        raise CheckpointError(
            f"{where}: shape {tuple(shape)} of {value['dtype']} needs {expected} bytes, "
            f"the header gives {end - begin}"
        )
    meta = TensorMeta(name, tuple(shape), str(dtype).removeprefix("torch."), expected)
    return Entry(meta, dtype, data_start + begin)


def _natural(value: object) -> TypeGuard[list[int]]:
    """Whether `value` is a list of integers in 0 .. 2**63 - 1."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _refuse_overlap(path: Path, entries: dict[str, Entry]) -> None:
    """Two tensors must not share bytes; holes between them are harmless."""
    ordered = sorted((e for e in entries.values() if e.meta.nbytes), key=lambda entry: entry.begin)
    for before, after in pairwise(ordered):
        if before.begin + before.meta.nbytes > after.begin:
            raise CheckpointError(
                f"{path}: tensors {before.meta.name!r} and {after.meta.name!r} overlap; the header lies"
            )
