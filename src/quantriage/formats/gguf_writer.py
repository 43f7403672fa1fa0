"""A GGUF file again with some tensors replaced, and every other byte as it was.

The header is copied and only the type and offset of each tensor are overwritten in it, so that metadata
keep the very bytes their writer gave them; types and offsets have a fixed width, so nothing moves. Writing
a new file with gguf-py was rejected: it holds all metadata in memory and writes them its own way.
"""

import os
import struct
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import BinaryIO

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from quantriage.checkpoint.gguf_file import refuse_split
from quantriage.checkpoint.gguf_header import GGUFHeader, GGUFTensor, read_gguf_header
from quantriage.errors import CheckpointError, UsageError
from quantriage.records.atomic import whole_file

_PIECE = 4 << 20  # bytes copied at once


def rewrite_gguf(
    source: Path, out: Path, replacements: Mapping[str, tuple[str, bytes]], file_type: int | None = None
) -> None:
    """Write `out` as `source` with the tensors of `replacements` (type name, bytes) under their GGUF names.

    file_type: the new general.file_type, what a loader prints of the file, where `source` has that key.
    Tensors keep their order; each begins at a multiple of the file's alignment. The file gets its name when
    it is complete. Peak memory: 4 MB and one replacement. Raises CheckpointError for an unknown tensor, a
    type whose blocks do not divide its rows, bytes of the wrong length or a split file; UsageError if `out`
    is `source`; StorageError on a full disk.
    """
    header = read_gguf_header(source)
    refuse_split(source, header.scalars)
    if out.exists() and out.samefile(source):
        raise UsageError(f"{out}: is the file to be rewritten; choose another name")
    kinds = {name: _checked(source, header, name, *entry) for name, entry in replacements.items()}
    with whole_file(out) as new, source.open("rb") as old:
        _write(old, new, header, kinds, replacements)
        if file_type is not None and header.file_type_at is not None:
            new.seek(header.file_type_at)
            new.write(struct.pack("<I", file_type))


def _checked(source: Path, header: GGUFHeader, name: str, kind: str, data: bytes) -> GGMLQuantizationType:
    """The type of one replacement, after comparing its bytes with the tensor's shape."""
    if name not in header.tensors:
        raise CheckpointError(f"{source}: no tensor {name!r} to replace")
    if kind not in GGMLQuantizationType.__members__:
        raise CheckpointError(f"{name!r}: {kind!r} is no GGUF type")
    number = GGMLQuantizationType[kind]
    width, nbytes = GGML_QUANT_SIZES[number]
    shape = header.tensors[name].meta.shape
    if (shape[-1] if shape else 1) % width:
        raise CheckpointError(
            f"{name!r} of shape {shape} cannot be {kind}: rows must be a multiple of {width}"
        )
    expected = prod(shape) // width * nbytes
    if len(data) != expected:
        raise CheckpointError(f"{name!r} of shape {shape} takes {expected} bytes as {kind}, got {len(data)}")
    return number


def _write(
    old: BinaryIO,
    new: BinaryIO,
    header: GGUFHeader,
    kinds: Mapping[str, GGMLQuantizationType],
    replacements: Mapping[str, tuple[str, bytes]],
) -> None:
    """Header, then tensors in the order of their bytes, then each tensor's new type and offset."""
    tensors = sorted(header.tensors.values(), key=lambda tensor: tensor.begin)
    end = old.seek(0, os.SEEK_END)
    begins = [tensor.begin for tensor in tensors] + [end]
    _copy(old, new, 0, begins[0])
    places: list[tuple[GGUFTensor, int]] = []
    for tensor, follower in zip(tensors, begins[1:], strict=True):
        name = tensor.meta.name
        places.append((tensor, new.tell()))
        if name not in kinds:
            _copy(old, new, tensor.begin, follower)  # with the padding behind it
        elif len(replacements[name][1]) == tensor.meta.nbytes:
            new.write(replacements[name][1])
            _copy(old, new, tensor.begin + tensor.meta.nbytes, follower)
        else:
            new.write(replacements[name][1])
            new.write(b"\0" * (-(new.tell() - header.data_start) % header.alignment))
    for tensor, begin in places:
        new.seek(tensor.type_at)
        kind = kinds.get(tensor.meta.name, tensor.kind)
        new.write(struct.pack("<IQ", int(kind), begin - header.data_start))


def _copy(old: BinaryIO, new: BinaryIO, begin: int, end: int) -> None:
    """Bytes begin .. end of the old file, in pieces."""
    old.seek(begin)
    for length in _pieces(end - begin):
        data = old.read(length)
        if len(data) != length:
            raise CheckpointError(f"{old.name}: became shorter while it was copied; start again")
        new.write(data)


def _pieces(total: int) -> Iterator[int]:
    """Lengths that add up to `total`."""
    while total > 0:
        yield min(total, _PIECE)
        total -= _PIECE
