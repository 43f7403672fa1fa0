"""Hidden states between blocks: in memory up to a budget, then on disk.

Keys are plain strings. Files hold raw bytes and are written by temporary name, then renamed. Memory-mapping
was rejected: mapped pages count as resident memory and would break the bound the budget promises.
"""

import errno
import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quantriage.errors import StorageError


@dataclass(frozen=True)
class _Spilled:
    path: Path
    shape: torch.Size
    dtype: torch.dtype


class StateStore:
    """Tensors by key. Holds at most `budget_bytes` in memory; what does not fit goes to files in `folder`."""

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self._folder, self.budget_bytes = folder, budget_bytes
        self._memory: dict[str, Tensor] = {}
        self._files: dict[str, _Spilled] = {}
        self._used = 0
        self._numbers = itertools.count()

    @property
    def spilled_bytes(self) -> int:
        """Bytes now on disk."""
        return sum(s.shape.numel() * s.dtype.itemsize for s in self._files.values())

    def put(self, key: str, value: Tensor) -> None:
        """Keep a copy-free reference to `value` (on the CPU), or write it out if the budget is full."""
        self.drop(key)
        value = value.detach().to("cpu").contiguous()
        size = value.numel() * value.element_size()
        if self._used + size <= self.budget_bytes:
            self._memory[key] = value
            self._used += size
            return
        path = self._folder / f"state-{next(self._numbers)}.bin"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Not numpy's tofile: on a full disk it raises an OSError without an errno.
            path.write_bytes(value.reshape(-1).view(torch.uint8).numpy().data)
        except OSError as error:
            path.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StorageError(
                    f"disk full while spilling {size / 1e6:.0f} MB of hidden states to {self._folder}; "
                    "free space, or raise the state budget so that fewer are spilled"
                ) from error
            raise
        self._files[key] = _Spilled(path, value.shape, value.dtype)

    def get(self, key: str) -> Tensor:
        """The tensor under `key`; KeyError if there is none."""
        if key in self._memory:
            return self._memory[key]
        spilled = self._files[key]
        size = spilled.shape.numel() * spilled.dtype.itemsize
        raw = torch.from_file(str(spilled.path), shared=False, size=size, dtype=torch.uint8).clone()
        return raw.view(spilled.dtype).view(spilled.shape)

    def drop(self, key: str) -> None:
        """Forget `key`, if present."""
        if key in self._memory:
            value = self._memory.pop(key)
            self._used -= value.numel() * value.element_size()
        elif key in self._files:
            self._files.pop(key).path.unlink(missing_ok=True)

    def drop_prefix(self, prefix: str) -> None:
        """Forget every key that begins so."""
        for key in [key for key in (*self._memory, *self._files) if key.startswith(prefix)]:
            self.drop(key)

    def clear(self) -> None:
        """Forget everything and remove the files."""
        for key in [*self._memory, *self._files]:
            self.drop(key)
