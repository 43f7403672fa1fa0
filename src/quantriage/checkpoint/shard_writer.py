"""A checkpoint folder written shard by shard that appears under its name only when it is complete.

Everything goes into a sibling folder `.<name>.partial-<pid>`, which is renamed at the end and removed on
any failure. Writing in place with a marker file was rejected: whoever finds the folder first, an engine
or a person, must not need to know the marker.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from quantriage.checkpoint.safetensors_source import INDEX_NAME, SINGLE_NAME
from quantriage.checkpoint.shard_file import ShardFile
from quantriage.errors import CheckpointError, StorageError
from quantriage.records.digest import file_digest
from quantriage.records.storage import writing

DEFAULT_SHARD_BYTES = 2 << 30


class ShardWriter:
    """Write tensors and files into a new folder; a context manager. Peak memory: one tensor.

    Leaving the block normally publishes the folder; leaving it by an exception removes everything.
    """

    def __init__(
        self, directory: Path, max_shard_bytes: int = DEFAULT_SHARD_BYTES, replace: bool = False
    ) -> None:
        self.directory = directory.absolute()
        self.max_shard_bytes = max_shard_bytes
        self.digests: dict[str, str] = {}
        self._replace = replace
        self._partial = self.directory.parent / f".{self.directory.name}.partial-{os.getpid()}"
        self._shard: ShardFile | None = None
        self._closed: list[tuple[Path, tuple[str, ...], str]] = []
        self._names: set[str] = set()
        self._total = 0
        self._finished = False

    def __enter__(self) -> Self:
        if self.directory.is_symlink() or (self.directory.exists() and not self.directory.is_dir()):
            raise StorageError(f"{self.directory}: exists and is no folder; choose another place")
        with writing(self.directory):
            if self.directory.is_dir() and any(self.directory.iterdir()) and not self._replace:
                raise StorageError(
                    f"{self.directory}: exists and is not empty; choose another place or ask to replace it"
                )
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._discard()

    def add(self, name: str, tensor: Tensor) -> None:
        """Add one tensor to the current shard, starting a new shard if it would grow too large."""
        self._check_open()
        if name in self._names:
            raise CheckpointError(f"{self.directory}: tensor {name!r} written twice")
        size = tensor.numel() * tensor.dtype.itemsize
        with writing(self.directory):
            if self._shard is not None and self._shard.nbytes + size > self.max_shard_bytes:
                self._close_shard(self._shard)
            if self._shard is None:
                self._shard = ShardFile(self._partial / f"shard-{len(self._closed) + 1:05d}.spool")
            self._shard.add(name, tensor)
        self._names.add(name)
        self._total += size

    def add_file(self, name: str, content: bytes) -> None:
        """Write a file beside the tensors, such as config.json."""
        self._check_open()
        if Path(name).name != name or name in (SINGLE_NAME, INDEX_NAME):
            raise CheckpointError(f"{self.directory}: {name!r} is not a name for a file beside the weights")
        with writing(self.directory), (self._partial / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.digests[name] = hashlib.sha256(content).hexdigest()

    def copy_file(self, path: Path) -> None:
        """Copy a file under its own name, following links."""
        self._check_open()
        with writing(self.directory):
            shutil.copyfile(path, self._partial / path.name)
        self.digests[path.name] = file_digest(self._partial / path.name)

    def finish(self) -> dict[str, str]:
        """Name the shards, write the index, publish the folder; sha256 of every file by name."""
        if self._finished:
            return self.digests
        with writing(self.directory):
            if self._shard is not None:
                self._close_shard(self._shard)
            self._name_shards()
            _sync_folder(self._partial)
            self._publish()
        self._finished = True
        return self.digests

    def _close_shard(self, shard: ShardFile) -> None:
        path = self._partial / f"shard-{len(self._closed) + 1:05d}.safetensors"
        self._closed.append((path, shard.names, shard.close_into(path)))
        self._shard = None

    def _name_shards(self) -> None:
        """Give the shards their final names, now that their number is known."""
        count = len(self._closed)
        weight_map: dict[str, str] = {}
        for number, (path, names, digest) in enumerate(self._closed, start=1):
            name = SINGLE_NAME if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            path.rename(self._partial / name)
            self.digests[name] = digest
            weight_map.update(dict.fromkeys(names, name))
        if count > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(weight_map.items()))}
            content = (json.dumps(index, indent=2) + "\n").encode()
            (self._partial / INDEX_NAME).write_bytes(content)
            self.digests[INDEX_NAME] = hashlib.sha256(content).hexdigest()

    def _publish(self) -> None:
        """Rename the partial folder to its final name; what it replaces comes back if that fails."""
        old = self.directory.parent / f".{self.directory.name}.replaced-{os.getpid()}"
        replaced = self.directory.exists() and self._replace
        if replaced:
            self.directory.rename(old)
        try:
            self._partial.rename(self.directory)
        except OSError:
            if replaced:
                old.rename(self.directory)
            raise
        _sync_folder(self.directory.parent)
        if replaced:
            shutil.rmtree(old)

    def _discard(self) -> None:
        if self._shard is not None:
            self._shard.discard()
            self._shard = None
        shutil.rmtree(self._partial, ignore_errors=True)

    def _check_open(self) -> None:
        assert not self._finished, "the folder is already published"


def _sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
