"""Safetensors weights as a TensorSource: one file, or a folder of shards with an index.

Every header is checked when the source is opened; a tensor is mapped when it is asked for. The index is a
file from strangers too: it may only name files in its own folder. A hub cache keeps its files as links
from `snapshots/<revision>/` into `blobs/` of the same repository, the one place outside that is allowed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from quantriage.checkpoint.mapped import map_tensor
from quantriage.checkpoint.pickle_files import pickles_in, refuse_pickle
from quantriage.checkpoint.safetensors_header import Entry, read_header, read_metadata
from quantriage.checkpoint.source import TensorMeta
from quantriage.checkpoint.strict_json import read_object
from quantriage.errors import CheckpointError
from quantriage.records.digest import combined_digest, file_digest

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True)
class SafetensorsSource:
    """Tensors of one or more safetensors files. Use `open_file`, `open_folder` or `open_safetensors`."""

    files: tuple[Path, ...]
    entries: Mapping[str, tuple[Path, Entry]]

    def names(self) -> tuple[str, ...]:
        """All tensor names."""
        return tuple(self.entries)

    def meta(self, name: str) -> TensorMeta:
        """Shape and dtype of one tensor."""
        return self._find(name)[1].meta

    def get(self, name: str) -> Tensor:
        """The tensor, mapped privately; its memory goes with it."""
        path, entry = self._find(name)
        return map_tensor(path, entry.begin, entry.meta.shape, entry.dtype)

    def metadata(self) -> dict[str, str]:
        """The texts in the headers of all files; files must not contradict each other."""
        found: dict[str, str] = {}
        for path in self.files:
            for key, text in read_metadata(path).items():
                if found.setdefault(key, text) != text:
                    raise CheckpointError(f"{path}: metadata {key[:200]!r} differs between the files")
        return found

    def digest(self) -> str:
        """sha256 over the files' contents: of the file itself if there is one, else of names and digests."""
        return self._digest

    @property
    def file_bytes(self) -> int:
        """Bytes of all files on disk."""
        return sum(path.stat().st_size for path in self.files)

    @cached_property
    def _digest(self) -> str:
        if len(self.files) == 1:
            return file_digest(self.files[0])
        return combined_digest((path.name, file_digest(path)) for path in sorted(self.files))

    def _find(self, name: str) -> tuple[Path, Entry]:
        if name not in self.entries:
            raise CheckpointError(f"{self.files[0].parent}: no tensor {name!r} in this checkpoint")
        return self.entries[name]


def open_safetensors(path: Path) -> SafetensorsSource:
    """Open a file or a folder."""
    return open_folder(path) if path.is_dir() else open_file(path)


def open_file(path: Path) -> SafetensorsSource:
    """Open one safetensors file; its header is checked at once."""
    entries = read_header(path)
    if not entries:
        raise CheckpointError(f"{path}: holds no tensor")
    return SafetensorsSource((path,), {name: (path, entry) for name, entry in entries.items()})


def open_folder(folder: Path) -> SafetensorsSource:
    """Open `model.safetensors`, else the shards that the index names, else the only safetensors file."""
    if (folder / SINGLE_NAME).is_file():
        return open_file(folder / SINGLE_NAME)
    if (folder / INDEX_NAME).is_file():
        return _open_shards(folder)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return open_file(found[0])
    if found:
        raise CheckpointError(
            f"{folder}: {len(found)} safetensors files and no {INDEX_NAME} to say which belong"
        )
    for pickle in pickles_in(folder):
        refuse_pickle(pickle)
    raise CheckpointError(f"{folder}: no weights; expected {SINGLE_NAME}, {INDEX_NAME} or a .gguf file")


def _open_shards(folder: Path) -> SafetensorsSource:
    """Read the index and the header of every shard it names."""
    weight_map = read_object(folder / INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX_NAME}: no weight_map from tensor names to files")
    shards: dict[str, dict[str, Entry]] = {}
    paths: dict[str, Path] = {}
    entries: dict[str, tuple[Path, Entry]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{folder / INDEX_NAME}: tensor {name!r}: file name is {shard!r}")
        if shard not in shards:
            paths[shard] = _shard_path(folder, shard, name)
            shards[shard] = read_header(paths[shard])
        if name not in shards[shard]:
            raise CheckpointError(f"{paths[shard]}: tensor {name!r} is in the index but not in this shard")
        entries[name] = (paths[shard], shards[shard][name])
    return SafetensorsSource(tuple(sorted(paths.values())), entries)


def _shard_path(folder: Path, shard: str, tensor: str) -> Path:
    """The shard's path if it lies in the folder; raises CheckpointError if outside, a pickle or missing."""
    where = f"{folder / INDEX_NAME}: tensor {tensor!r}"
    if "\0" in shard:
        raise CheckpointError(f"{where}: file name {shard!r} is not a name")
    path = folder / shard
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{where}: {shard!r} cannot be followed ({error})") from error
    roots = [folder.resolve()]
    if folder.absolute().parent.name == "snapshots":
        roots.append((folder.absolute().parent.parent / "blobs").resolve())
    if not any(target.is_relative_to(root) for root in roots) or ".." in Path(shard).parts:
        raise CheckpointError(f"{where}: file {shard!r} points outside the folder; refused")
    if path.suffix != ".safetensors":
        if path.suffix in (".bin", ".pt", ".pth"):
            refuse_pickle(path)
        raise CheckpointError(f"{where}: {shard!r} is not a safetensors file")
    try:
        present = path.is_file()
    except OSError as error:  # a name too long for any file
        raise CheckpointError(f"{where}: {shard[:200]!r} cannot be opened ({error.strerror})") from error
    if not present:
        raise CheckpointError(f"{where}: shard {shard!r} is missing; fetch the checkpoint again")
    return path
