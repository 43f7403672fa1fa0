"""A GGUF file under Hugging Face names: the full-precision reference that people have on disk.

llama.cpp renames tensors and changes some values (it permutes rotary rows, adds one to norms, transposes
Conv1D). transformers knows how to undo that for each architecture; its name map and tensor processors are
applied here to one tensor at a time, where its own loader holds the whole model twice. Our header check
runs before any of it sees the file. Everything is float32, the exact product of what is stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)

from quantriage.checkpoint.gguf_file import GGUFSource, open_gguf
from quantriage.errors import CheckpointError
from quantriage.numerics.stored_weight import StoredWeight

_FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class GGUFWeights:
    """A WeightSource over a GGUF file. Use `open_gguf_weights`.

    parts: by Hugging Face name, the GGUF tensors it is made of (gate and up experts make one).
    """

    source: GGUFSource
    config: PretrainedConfig
    shapes: Mapping[str, tuple[int, ...]]
    parts: Mapping[str, tuple[str, ...]]
    name_map: Mapping[str, str]
    processor: Any  # transformers' TensorProcessor of the architecture; untyped upstream

    @property
    def stored_dtype(self) -> torch.dtype:
        """The float type of the file if all its matrices have one, else float32."""
        kinds = {self.source.meta(name).dtype for name in self.source.names()}
        plain = kinds - {"float32"} or {"float32"}
        return _FLOATS.get(plain.pop(), torch.float32) if len(plain) == 1 else torch.float32

    def names(self) -> tuple[str, ...]:
        """Hugging Face names, in the order of the model."""
        return tuple(self.parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in the Hugging Face model."""
        self._require(name)
        return self.shapes[name]

    def get(self, name: str) -> Tensor:
        """The tensor as transformers would load it, float32. Peak memory: the tensor, twice if permuted."""
        self._require(name)
        gathered: dict[str, Tensor] = {}
        for part in self.parts[name]:
            values = self.source.get(part).to(torch.float32).numpy()
            result = self.processor.process(
                weights=values,
                name=part,
                tensor_key_mapping=self.name_map,
                parsed_parameters={"tensors": gathered},
            )
            if result.name is not None:  # else the processor put it into `gathered` itself
                gathered[name] = torch.from_numpy(np.ascontiguousarray(result.weights))  # ours already
        tensor = gathered[name]
        if tuple(tensor.shape) != self.shapes[name]:
            raise CheckpointError(
                f"{self.source.path}: {name!r} has shape {tuple(tensor.shape)}, "
                f"its config says {self.shapes[name]}"
            )
        return tensor

    def stored(self, module: str) -> StoredWeight | None:  # noqa: ARG002
        """Block types are read dense, as a reference."""
        return None

    def _require(self, name: str) -> None:
        if name not in self.parts:
            raise CheckpointError(f"{self.source.path}: no tensor for {name!r}")


def open_gguf_weights(path: Path) -> GGUFWeights:
    """Check the header, then let transformers say what the tensors are. Raises CheckpointError."""
    source = open_gguf(path)
    architecture = source.scalars.get("general.architecture")
    if not isinstance(architecture, str):
        raise CheckpointError(f"{path}: general.architecture is {architecture!r}; expected a name")
    try:
        parsed = load_gguf_checkpoint(str(path), return_tensors=False)["config"]
        config = CONFIG_MAPPING[parsed["model_type"]].from_dict(dict(parsed))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=parsed)
        name_map = get_gguf_hf_weights_map(model, processor)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: transformers cannot read this model ({reason})") from error
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    parts = _parts(source, name_map, shapes)
    for name in shapes:
        if name not in parts and name not in tied:
            raise CheckpointError(
                f"{path}: no tensor for {name!r}; the file is incomplete or of another kind"
            )
    for name, stored in parts.items():
        count = sum(prod(source.meta(part).shape) for part in stored)
        if count != prod(shapes[name]):
            raise CheckpointError(f"{path}: {name!r} has {count} values, its config says {shapes[name]}")
    return GGUFWeights(source, config, shapes, parts, name_map, processor)


def _parts(
    source: GGUFSource, name_map: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[str, ...]]:
    """GGUF tensors by the Hugging Face name they make, in the model's order."""
    found: dict[str, list[str]] = {}
    for stored in source.names():
        # stacked experts are mapped without the suffix that the file has
        name = name_map.get(stored) or name_map.get(stored.removesuffix(".weight"))
        if name is not None:
            found.setdefault(name, []).append(stored)
    return {name: tuple(found[name]) for name in shapes if name in found}
