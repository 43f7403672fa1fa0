"""A Hugging Face folder as a GGUF file without its weights: metadata, tokenizer, names, shapes and types.

The outline is a sparse file of the full size, so the GGUF reader opens it like any other. That reader knows
how llama.cpp orders rows, and `rewrite_gguf` fills tensors in; with the outline both serve a folder, and no
second table of what goes where is needed. What the reader would take for another model is found out before
any work. Building it takes a temporary file, the vocabulary, and no weights.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from gguf.constants import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    LlamaFileType,
)
from gguf.gguf_writer import GGUFWriter
from gguf.metadata import Metadata
from gguf.tensor_mapping import get_tensor_name_map
from transformers import AutoModelForCausalLM, PretrainedConfig

from quantriage.errors import CheckpointError, reason_of
from quantriage.formats.checkpoint import Checkpoint
from quantriage.formats.gguf import GGUFWeights, open_gguf_weights
from quantriage.formats.gguf_settings import FREQUENCIES, architecture_of, write_settings
from quantriage.formats.gguf_vocabulary import gguf_vocabulary

_ALIGNMENT = 32  # GGUF's default
_FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
}


def half_kind(checkpoint: Checkpoint) -> str:
    """The two-byte type that holds a checkpoint's matrices best: its own, else F16."""
    return "BF16" if checkpoint.stored_dtype == torch.bfloat16 else "F16"


@contextmanager
def as_gguf(checkpoint: Checkpoint, kind: str | None = None) -> Iterator[GGUFWeights]:
    """The checkpoint's GGUF file; for a folder an outline with matrices of type `kind` (F32, F16 or BF16).

    The outline's weights are nothing but zeros, and it is gone at the end of the block. Raises
    CheckpointError for a folder that cannot be written as GGUF.
    """
    if isinstance(checkpoint.weights, GGUFWeights):
        yield checkpoint.weights
        return
    with TemporaryDirectory() as place:
        yield write_outline(checkpoint, Path(place) / "outline.gguf", kind or half_kind(checkpoint))


def write_outline(checkpoint: Checkpoint, path: Path, kind: str) -> GGUFWeights:
    """Write the outline and open it. Raises CheckpointError if it does not read back as the same model."""
    where = str(checkpoint.path)
    config = checkpoint.config
    architecture = architecture_of(config, where)
    shapes = _shapes(checkpoint)
    names = _gguf_names(shapes, architecture, config.num_hidden_layers, where)
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[architecture])
    writer.add_type("model")
    label = Metadata.apply_metadata_heuristic(
        Metadata(), None, None, checkpoint.folder.absolute(), sum(map(prod, shapes.values()))
    )
    label.set_gguf_meta_model(writer)
    divisors = write_settings(writer, config, where)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    gguf_vocabulary(checkpoint.tokenizer(), config.vocab_size, where).write(writer)
    if divisors is not None:
        _declare(writer, FREQUENCIES, tuple(divisors.shape), "F32")
    for name, shape in shapes.items():
        _declare(writer, names[name], shape, kind if len(shape) > 1 else "F32")
    lengths = [GGUFWriter.ggml_pad(info.nbytes, _ALIGNMENT) for info in writer.tensors[0].values()]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        start = GGUFWriter.ggml_pad(file.seek(0, os.SEEK_END), _ALIGNMENT)
        file.truncate(start + sum(lengths))  # holes for the weights
        if divisors is not None:  # declared first
            file.seek(start)
            file.write(divisors.numpy().tobytes())
    return _read_back(path, shapes, config, where)


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Tensors that the model needs, as transformers makes it, with their shapes; all are in the folder."""
    where = checkpoint.path
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(checkpoint.config)
    except Exception as error:  # a config class may raise anything at a stranger's values
        raise CheckpointError(f"{where}: transformers cannot make the model ({reason_of(error)})") from error
    tied = set(model.all_tied_weights_keys) if checkpoint.config.tie_word_embeddings else set()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}
    stored = set(checkpoint.weights.names())
    for name, shape in shapes.items():
        found = checkpoint.weights.shape(name) if name in stored else "missing"
        if found != shape:
            raise CheckpointError(f"{where}: {name!r} is {found}, its config says {shape}")
    return shapes


def _gguf_names(
    shapes: Mapping[str, tuple[int, ...]], architecture: MODEL_ARCH, blocks: int, where: str
) -> dict[str, str]:
    """GGUF name by Hugging Face name."""
    table = get_tensor_name_map(architecture, blocks)
    names = {name: table.get_name(name, (".weight", ".bias")) for name in shapes}
    unknown = [name for name, found in names.items() if found is None]
    if unknown:
        raise CheckpointError(f"{where}: llama.cpp has no tensor for {unknown[0]!r}")
    return {name: found for name, found in names.items() if found is not None}


def _declare(writer: GGUFWriter, name: str, shape: tuple[int, ...], kind: str) -> None:
    number = GGMLQuantizationType[kind]
    per_block, nbytes = GGML_QUANT_SIZES[number]
    writer.add_tensor_info(name, shape, np.dtype(np.float32), prod(shape) // per_block * nbytes, number)


def _read_back(
    path: Path, shapes: Mapping[str, tuple[int, ...]], config: PretrainedConfig, where: str
) -> GGUFWeights:
    """The outline through the reader, after a look whether it is the same model."""
    weights = open_gguf_weights(path)
    if {name: weights.shape(name) for name in weights.names()} != dict(shapes):
        odd = sorted(shapes.keys() ^ set(weights.names())) or ["a shape"]
        raise CheckpointError(f"{where}: would be read back from GGUF with another {odd[0]!r}; refused")
    for name in ("num_attention_heads", "num_key_value_heads", "tie_word_embeddings", "vocab_size"):
        ours, theirs = getattr(config, name), getattr(weights.config, name)
        if ours != theirs:
            raise CheckpointError(f"{where}: {name} {ours} would be read back from GGUF as {theirs}")
    return weights
