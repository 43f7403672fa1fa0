"""One safetensors file written with the memory of one tensor.

The header comes first and lists every tensor, so a naive writer holds the whole shard in memory until it
is complete. Here tensors are appended to a spool file as they come; closing writes the header and copies
the spool behind it, hashing on the way. That costs a second pass over the disk and no memory. Wider types
go first, as the format's own writer does, so that every tensor stays aligned to its item size.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from torch import Tensor

from quantriage.checkpoint.safetensors_header import DTYPES

_PIECE = 1 << 23  # bytes copied at once
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class ShardFile:
    """Tensors waiting in a spool file. `add` appends one, `close_into` makes the safetensors file."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._file = spool.open("wb", buffering=0)  # nothing left to flush when a full disk fails us
        self._tensors: dict[str, tuple[torch.dtype, tuple[int, ...], int]] = {}
        self.nbytes = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors so far."""
        return tuple(self._tensors)

    def add(self, name: str, tensor: Tensor) -> None:
        """Append a tensor's bytes. Peak memory: the tensor, and a copy if it is not contiguous."""
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        self._tensors[name] = (tensor.dtype, tuple(tensor.shape), self.nbytes)
        if flat.numel():
            rest = flat.view(torch.uint8).numpy().data  # a view, no copy
            while rest:
                rest = rest[self._file.write(rest) :]
        self.nbytes += flat.numel() * tensor.dtype.itemsize

    def close_into(self, path: Path) -> str:
        """Write the safetensors file, remove the spool, and return the file's sha256."""
        self._file.close()
        order = sorted(self._tensors.items(), key=lambda item: -item[1][0].itemsize)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        ranges: list[tuple[int, int]] = []
        end = 0
        for name, (dtype, shape, begin) in order:
            size = torch.Size(shape).numel() * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [end, end + size]}
            ranges.append((begin, size))
            end += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        digest = hashlib.sha256()
        with self._spool.open("rb") as source, path.open("wb") as target:
            for piece in (len(text).to_bytes(8, "little"), text):
                digest.update(piece)
                target.write(piece)
            for begin, size in ranges:
                source.seek(begin)
                while size:
                    piece = source.read(min(_PIECE, size))
                    digest.update(piece)
                    target.write(piece)
                    size -= len(piece)
            target.flush()
            os.fsync(target.fileno())
        self._spool.unlink()
        return digest.hexdigest()

    def discard(self) -> None:
        """Close without writing; the caller removes the folder."""
        self._file.close()
