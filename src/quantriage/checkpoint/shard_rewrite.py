"""A safetensors file again with some tensors replaced, added or gone, and all others' bytes as they were.

If every new tensor has the dtype and shape of the old one, the file is copied and only their bytes are
overwritten: the header stays the very text its writer gave it. Otherwise the header is made anew, with its
metadata and the old order, wider types first as the format's own writer has it.
"""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from quantriage.checkpoint.safetensors_header import DTYPES, Entry, read_header, read_metadata
from quantriage.errors import CheckpointError

_PIECE = 4 << 20
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def rewrite_shard(
    source: Path, target: Path, tensors: Mapping[str, Tensor], removed: Collection[str] = ()
) -> None:
    """Write `target` as `source` with `tensors` in it and `removed` gone. Peak memory: one tensor.

    Raises CheckpointError for a name to remove that is not there.
    """
    entries = read_header(source)
    missing = set(removed) - entries.keys()
    if missing:
        raise CheckpointError(f"{source}: no tensor {sorted(missing)[0]!r} to remove")
    if not removed and all(name in entries and _alike(entries[name], t) for name, t in tensors.items()):
        shutil.copyfile(source, target)
        with target.open("r+b") as file:
            for name, tensor in tensors.items():
                file.seek(entries[name].begin)
                file.write(_bytes(tensor))
        return
    _write_anew(source, target, entries, tensors, removed)


def _write_anew(
    source: Path,
    target: Path,
    entries: Mapping[str, Entry],
    tensors: Mapping[str, Tensor],
    removed: Collection[str],
) -> None:
    kept = [name for name in sorted(entries, key=lambda n: entries[n].begin) if name not in removed]
    names = [*kept, *(name for name in tensors if name not in entries)]
    dtypes = {name: tensors[name].dtype if name in tensors else entries[name].dtype for name in names}
    names.sort(key=lambda name: -dtypes[name].itemsize)  # stable
    metadata = read_metadata(source)
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name in names:
        shape = list(tensors[name].shape) if name in tensors else list(entries[name].meta.shape)
        size = torch.Size(shape).numel() * dtypes[name].itemsize
        header[name] = {"dtype": _NAMES[dtypes[name]], "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with source.open("rb") as old, target.open("xb") as new:
        new.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            if name in tensors:
                new.write(_bytes(tensors[name]))
                continue
            old.seek(entries[name].begin)
            for piece in _pieces(old, entries[name].meta.nbytes):
                new.write(piece)
        new.flush()
        os.fsync(new.fileno())


def _alike(entry: Entry, tensor: Tensor) -> bool:
    return entry.dtype == tensor.dtype and entry.meta.shape == tuple(tensor.shape)


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _pieces(file: BinaryIO, count: int) -> Iterator[bytes]:
    while count:
        piece = file.read(min(_PIECE, count))
        if not piece:
            raise CheckpointError(f"{file.name}: became shorter while it was copied; start again")
        yield piece
        count -= len(piece)
