"""Open a model: what it is, its config, its weights, its tokenizer, whichever format stores them.

The format is detected from files alone, never from a name, and unknown ones are refused rather than read
as dense: the leftover scales of an unread format would be ignored and the model would be noise. Remote
code is never trusted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from quantriage.checkpoint.location import resolve
from quantriage.checkpoint.safetensors_source import open_safetensors
from quantriage.checkpoint.strict_json import read_object
from quantriage.errors import CheckpointError, reason_of
from quantriage.formats.config_counts import refuse_endless
from quantriage.formats.dense import DenseWeights, majority_dtype
from quantriage.formats.gguf import open_gguf_weights
from quantriage.formats.readers import READERS
from quantriage.formats.stored_settings import CONFIG_NAME, StoredSettings, stored_settings
from quantriage.formats.tokenizers import Tokenizer, carried_by_folder, carried_by_tokenizer, load_tokenizer
from quantriage.formats.weight_source import WeightSource
from quantriage.records.digest import combined_digest, file_digest


@dataclass(frozen=True)
class Checkpoint:
    """An opened model. Nothing is read but headers and the config until asked for.

    kind: "dense", "gguf", or the quant_method of a quantized folder ("gptq", "awq", ...).
    stored_dtype: the float type most weights are stored in; float32 for a GGUF with block types.
    file_bytes: size of the weight files.
    """

    path: Path
    kind: str
    config: PretrainedConfig
    weights: WeightSource
    stored_dtype: torch.dtype
    file_bytes: int
    _weights_digest: Callable[[], str]

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return self.path if self.path.is_dir() else self.path.parent

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that comes with the model. Raises CheckpointError if there is none."""
        return load_tokenizer(self.folder, self.path.name if self.kind == "gguf" else None)

    def digest(self) -> str:
        """sha256 over the weights and, unless the file carries its own, the config."""
        if self.kind == "gguf":
            return self._weights_digest()
        config = file_digest(self.folder / CONFIG_NAME)
        return combined_digest([("weights", self._weights_digest()), (CONFIG_NAME, config)])

    def carried_files(self) -> dict[str, bytes]:
        """Files to copy into an export, by name: tokenizer, chat template, generation settings."""
        return (
            carried_by_tokenizer(self.tokenizer()) if self.kind == "gguf" else carried_by_folder(self.folder)
        )


def open_checkpoint(source: str | Path, revision: str | None = None) -> Checkpoint:
    """Open a folder, a .safetensors or .gguf file, or a hub repository. Raises CheckpointError."""
    path = resolve(str(source), revision)
    if path.suffix == ".gguf":
        return _open_gguf(path)
    if path.is_dir() and not (path / CONFIG_NAME).is_file():
        found = sorted(path.glob("*.gguf"))
        if len(found) == 1:
            return _open_gguf(found[0])
        if found:
            raise CheckpointError(f"{path}: {len(found)} .gguf files; name the one you want")
    return _open_folder(path)


def _open_gguf(path: Path) -> Checkpoint:
    weights = open_gguf_weights(path)
    source = weights.source
    return Checkpoint(
        path, "gguf", weights.config, weights, weights.stored_dtype, source.file_bytes, source.digest
    )


def _open_folder(path: Path) -> Checkpoint:
    """A folder with config.json, or one safetensors file beside it."""
    source = open_safetensors(path)  # first: a folder of pickles deserves that message
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(f"{folder}: no {CONFIG_NAME} beside the weights")
    stored = stored_settings(folder, source.entries.keys())
    weights: WeightSource
    if stored is None:
        kind, weights = "dense", DenseWeights(source)
    else:
        kind = _method(stored)
        weights = READERS[kind](source, stored.settings, str(stored.path))
    refuse_endless(read_object(folder / CONFIG_NAME), len(source.entries), str(folder / CONFIG_NAME))
    config = _load_config(folder)
    return Checkpoint(path, kind, config, weights, majority_dtype(source), source.file_bytes, source.digest)


def _method(stored: StoredSettings) -> str:
    """The quantization method; methods that have no reader are refused."""
    method = stored.settings.get("quant_method")
    if not isinstance(method, str) or method not in READERS:
        raise CheckpointError(
            f"{stored.path}: quantization method {method!r} is not read yet; dense, GGUF, "
            f"{', '.join(READERS)} are"
        )
    return method


def _load_config(folder: Path) -> PretrainedConfig:
    """The text model's config, without its quantization, which the weights have absorbed."""
    try:
        whole = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a config class may raise anything at a stranger's values
        raise CheckpointError(
            f"{folder / CONFIG_NAME}: transformers cannot read it ({reason_of(error)})"
        ) from error
    config: PretrainedConfig = whole.get_text_config()
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config
