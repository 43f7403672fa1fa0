"""One tensor's bytes as a private memory map that lives exactly as long as the tensor.

Mapping the whole file once is simpler, but every page a caller touches then counts as resident until the
file is closed: streaming through 6 GB ends with 6 GB. A map per tensor is released with the tensor. It is
copy-on-write, so a caller that writes into its tensor changes neither the file nor anyone else's copy.
"""

import mmap
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from quantriage.errors import CheckpointError


def map_bytes(path: Path, begin: int, length: int) -> memoryview:
    """`length` > 0 bytes of `path` from `begin`, mapped; unmapped when the last view of them goes."""
    skip = begin % mmap.ALLOCATIONGRANULARITY
    try:
        with path.open("rb") as file:
            area = mmap.mmap(file.fileno(), skip + length, offset=begin - skip, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {length} bytes at {begin} cannot be read ({error})") from error
    return memoryview(area)[skip:]


def map_tensor(path: Path, begin: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor of `shape` and `dtype` whose bytes start at `begin`. Peak memory: its own bytes."""
    count = prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    data = map_bytes(path, begin, count * dtype.itemsize)
    if begin % dtype.itemsize:  # the format allows any offset, torch wants aligned storage
        data = memoryview(bytearray(data))
    return torch.frombuffer(data, dtype=dtype, count=count).reshape(shape)
