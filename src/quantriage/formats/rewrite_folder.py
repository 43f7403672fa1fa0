"""A folder of safetensors written again: files copied, shards of replaced tensors rewritten, config amended.

What differs between formats is a `Codec`: how a module is stored, in which tensors, and how the config says
so. A module in full precision is the same everywhere but for the name of the list that says it.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from quantriage.checkpoint.new_folder import new_folder
from quantriage.checkpoint.safetensors_header import read_header
from quantriage.checkpoint.safetensors_source import INDEX_NAME, SafetensorsSource, open_safetensors
from quantriage.checkpoint.shard_rewrite import rewrite_shard
from quantriage.checkpoint.strict_json import read_object
from quantriage.errors import CheckpointError
from quantriage.formats.checkpoint import Checkpoint
from quantriage.formats.rewrite import DENSE, Replacement, Rounding, Way, cast_exactly, rounded_in_order
from quantriage.formats.stored_settings import CONFIG_NAME, KEY, StoredSettings, stored_settings
from quantriage.formats.weight_source import WeightSource
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme

SIDE_CONFIGS = ("quantize_config.json", "quantization_config.json", "quant_config.json")
"""Copies of the quantization config that some tools write beside config.json, and read first."""

Settings = Mapping[str, object]


class Codec(Protocol):
    """What a folder rewriter asks of one format. Raises CheckpointError."""

    def own(self, module: str) -> tuple[Scheme, Tensor | None] | str:
        """A quantized module's scheme and the group of each column, or why it cannot be rounded here."""
        ...

    def raised(self, module: str, menu: Sequence[Scheme]) -> tuple[Way, ...]:
        """Larger integer ways of the menu that the format can hold."""
        ...

    def tensors(self, module: str, quantized: QuantizedTensor, raised: bool) -> dict[str, Tensor]:
        """The stored tensors by full name; column groups stay as they are unless `raised`."""
        ...

    def settings(self, settings: Settings, changed: Mapping[str, Way]) -> dict[str, object] | None:
        """The quantization config with modules stored in other ways, full precision among them.

        None if it cannot say so.
        """
        ...


@dataclass(frozen=True)
class FolderRewriter:
    """A Rewriter over a folder of safetensors. Memory: the replacements, and one tensor."""

    folder: Path
    source: SafetensorsSource
    weights: WeightSource
    dtype: torch.dtype
    codec: Codec | None
    fuses: bool = True

    @staticmethod
    def of(checkpoint: Checkpoint, codec: Codec | None) -> "FolderRewriter":
        """For any checkpoint of safetensors; codec: None for one that is not quantized."""
        source = open_safetensors(checkpoint.path)
        return FolderRewriter(checkpoint.folder, source, checkpoint.weights, checkpoint.stored_dtype, codec)

    def own(self, name: str) -> Way | str:
        """Full precision in the stored dtype, or the module's integer scheme."""
        module = name.removesuffix(".weight")
        stored = self.weights.stored(module) if module != name else None
        if stored is None:
            if name not in self.source.entries:
                return "it is not stored under its own name"
            return Way(DENSE, self.source.meta(name).nbytes)
        assert self.codec is not None
        found = self.codec.own(module)
        return found if isinstance(found, str) else Way(str(found[0]), stored.nbytes, found[0])

    def raised(self, name: str, menu: Sequence[Scheme]) -> tuple[Way, ...]:
        """Schemes of the menu that the format holds, then full precision, as far as larger than now."""
        module = name.removesuffix(".weight")
        stored = self.weights.stored(module) if module != name else None
        if stored is None or self.codec is None:
            return ()
        stands = self._stored()
        if not self._says(stands):
            return ()
        dense = Way(DENSE, prod(stored.shape) * self.dtype.itemsize)
        ways = [*self.codec.raised(module, menu)]
        if self.codec.settings(stands.settings, {module: dense}) is not None:
            ways.append(dense)
        return tuple(way for way in ways if way.nbytes > stored.nbytes)

    def replace(self, name: str, way: Way, tensor: Tensor, rounding: Rounding | None) -> Replacement:
        """Rounded by `rounding` if the way is a scheme, else cast to the stored dtype."""
        module = name.removesuffix(".weight")
        stored = self.weights.stored(module) if module != name else None
        if stored is None:
            dense = cast_exactly(name, tensor, self.source.entries[name][1].dtype)
            return Replacement(name, {name: dense}, dense, way)
        assert self.codec is not None
        old = self._parts(module)
        if way.scheme is None:
            dense = cast_exactly(name, tensor, self.dtype)
            return Replacement(name, {name: dense}, dense, way, module, tuple(sorted(old - {name})))
        assert rounding is not None
        own = self.codec.own(module)
        same = not isinstance(own, str) and way.scheme == own[0]
        group = own[1] if same and not isinstance(own, str) else None
        quantized, value = rounded_in_order(tensor, way.scheme, group, rounding)
        tensors = self.codec.tensors(module, quantized, not same)
        if same:
            self._check_alike(module, tensors)
            return Replacement(name, tensors, value, way)
        return Replacement(name, tensors, value, way, module, tuple(sorted(old - tensors.keys())))

    def write(self, replacements: Sequence[Replacement], out: Path) -> Path:
        """Every file of the folder, hidden ones aside, with the replacements in place."""
        tensors = {name: t for item in replacements for name, t in item.tensors.items()}
        removed = {name for item in replacements for name in item.removed}
        shard_of = {name: path for name, (path, _) in self.source.entries.items()}
        for item in replacements:  # new tensors go where the module's old ones are
            near = next((n for n in [*item.tensors, *item.removed] if n in shard_of), None)
            if near is None:
                raise CheckpointError(f"{item.name}: has no tensor in {self.folder}")
            for name in item.tensors:
                shard_of.setdefault(name, shard_of[near])
        changed = {item.module: item.way for item in replacements if item.module is not None}
        with new_folder(out) as folder:
            for path in self._files():
                place = folder / path.relative_to(self.folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                new = {n: t for n, t in tensors.items() if shard_of[n] == path}
                gone = [n for n in removed if shard_of[n] == path]
                if new or gone:
                    rewrite_shard(path, place, new, gone)
                else:
                    shutil.copyfile(path, place)
            if changed:
                self._amend_configs(folder, changed)
                _amend_index(folder / INDEX_NAME, tensors, removed, shard_of)
        return out

    def _stored(self) -> StoredSettings:
        found = stored_settings(self.folder, self.source.entries.keys())
        assert found is not None
        return found

    def _says(self, stored: StoredSettings) -> bool:
        """Whether a file holds the settings; else none could say that a module is stored in another way."""
        return stored.path.name != CONFIG_NAME or KEY in read_object(stored.path)

    def _parts(self, module: str) -> set[str]:
        """Names of all that is stored for a module's weight: a linear layer has nothing else but its bias."""
        own = {name for name in self.source.entries if name.startswith(f"{module}.")}
        return own - {f"{module}.bias"}

    def _check_alike(self, module: str, tensors: Mapping[str, Tensor]) -> None:
        """New parts must have the shapes of the old ones: a loader takes the config's word for them."""
        for name, tensor in tensors.items():
            if name not in self.source.entries:
                raise CheckpointError(f"{module}: {name!r} would be new; the module is stored in another way")
            meta, dtype = self.source.meta(name), str(tensor.dtype).removeprefix("torch.")
            if (meta.dtype, meta.shape) != (dtype, tuple(tensor.shape)):
                raise CheckpointError(
                    f"{module}: {name!r} is stored as {meta.dtype} {meta.shape}, rounded anew it is {dtype} "
                    f"{tuple(tensor.shape)}; that layout is not written here"
                )

    def _files(self) -> list[Path]:
        """Regular files outside hidden folders. Links may lead inside or to a hub cache's blobs."""
        roots = [self.folder.resolve()]
        if self.folder.absolute().parent.name == "snapshots":
            roots.append((self.folder.absolute().parent.parent / "blobs").resolve())
        found = []
        for path in sorted(self.folder.rglob("*")):
            inside = path.relative_to(self.folder)
            if any(part.startswith(".") for part in inside.parts[:-1]) or not path.is_file():
                continue
            if not any(path.resolve().is_relative_to(root) for root in roots):
                raise CheckpointError(f"{path}: is a link that leads outside the folder; refused")
            found.append(path)
        return found

    def _amend_configs(self, folder: Path, changed: Mapping[str, Way]) -> None:
        assert self.codec is not None
        whole = read_object(self.folder / CONFIG_NAME)
        if KEY in whole:
            whole[KEY] = self._amended(self._stored().settings, changed)
            _write_json(folder / CONFIG_NAME, whole)
        for name in SIDE_CONFIGS:
            if (self.folder / name).is_file():
                _write_json(folder / name, self._amended(read_object(self.folder / name), changed))

    def _amended(self, settings: Settings, changed: Mapping[str, Way]) -> dict[str, object]:
        assert self.codec is not None
        found = self.codec.settings(settings, changed)
        if found is None:
            raise CheckpointError(f"{self.folder}: its config cannot say that {sorted(changed)[0]} differs")
        return found


def _amend_index(
    path: Path, tensors: Mapping[str, Tensor], removed: set[str], shard_of: Mapping[str, Path]
) -> None:
    """Names of tensors that came and went, and the total size."""
    if not path.is_file():
        return
    index = read_object(path)
    old = index.get("weight_map")
    assert isinstance(old, dict)  # it was opened by this map
    names = {name: shard for name, shard in old.items() if name not in removed}
    names |= {name: shard_of[name].name for name in tensors if name not in old}
    metadata = index.get("metadata")
    if isinstance(metadata, dict) and "total_size" in metadata:
        headers = (read_header(path.parent / shard) for shard in set(names.values()))
        metadata["total_size"] = sum(e.meta.nbytes for header in headers for e in header.values())
    _write_json(path, {**index, "weight_map": dict(sorted(names.items()))})


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
