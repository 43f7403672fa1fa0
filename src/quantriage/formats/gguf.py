"""A GGUF file under Hugging Face names: the full-precision reference that people have on disk.

llama.cpp renames tensors and changes some values (it permutes rotary rows, adds one to norms, transposes
Conv1D). transformers knows how to undo that for each architecture; its name map and tensor processors are
applied here to one tensor at a time, where its own loader holds the whole model twice. Our header check
runs before any of it sees the file. Everything is float32, the exact product of what is stored.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)

from quantriage.checkpoint.gguf_file import GGUFSource, open_gguf, refuse_split
from quantriage.errors import CheckpointError, reason_of
from quantriage.formats.config_counts import refuse_endless
from quantriage.formats.gguf_blocks import stored_blocks
from quantriage.formats.gguf_order import Array, in_order, row_order
from quantriage.formats.gguf_settings import settings_left_out
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

    def nbytes(self, name: str) -> int:
        """Bytes that the file holds for the tensor."""
        self._require(name)
        return sum(self.source.meta(part).nbytes for part in self.parts[name])

    def get(self, name: str) -> Tensor:
        """The tensor as transformers would load it, float32. Peak memory: the tensor, twice if permuted."""
        self._require(name)
        tensor = self.assemble(name, lambda part: self.source.get(part).to(torch.float32).numpy())
        if tuple(tensor.shape) != self.shapes[name]:
            raise CheckpointError(
                f"{self.source.path}: {name!r} has shape {tuple(tensor.shape)}, "
                f"its config says {self.shapes[name]}"
            )
        return tensor

    def assemble(self, name: str, read: Callable[[str], Array]) -> Tensor:
        """What transformers' processor makes of the GGUF arrays that `read` gives for the parts of `name`."""
        gathered: dict[str, Tensor] = {}
        for array in self._processed(name, read, gathered):
            gathered[name] = torch.from_numpy(np.ascontiguousarray(array))  # ours already
        return gathered[name]

    def stored(self, module: str) -> StoredWeight | None:
        """What the file holds for a module's weight, or for a fused stack of experts, by its tensor's name.

        Rows are in Hugging Face's order and run over all experts of a stack. Transposed weights (Conv1D) are
        [out, in] here, as they are stored. None for plain types. Peak memory: the codes, twice if permuted,
        and four bytes a weight while the order of the rows is found.
        """
        name = module if module in self.parts else f"{module}.weight"
        if name not in self.parts or any(len(self.source.meta(p).shape) < 2 for p in self.parts[name]):
            return None
        records = [stored_blocks(self.source, part) for part in self.parts[name]]
        found = [record for record in records if record is not None]
        if len(found) < len(records):
            return None
        if self.as_stored(name):
            return in_order(found, None)
        where = f"{self.source.path}: {name!r}"
        return in_order(found, row_order(partial(self.assemble, name), self.part_shapes(name), where))

    def part_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Shapes of the GGUF tensors that make `name`, in their order."""
        self._require(name)
        return {part: self.source.meta(part).shape for part in self.parts[name]}

    def as_stored(self, name: str) -> bool:
        """Whether transformers takes the tensor as the file has it: an array without memory goes through."""
        if len(self.parts[name]) > 1:
            return False
        probe = np.broadcast_to(np.float32(0), self.source.meta(self.parts[name][0]).shape)
        return any(result is probe for result in self._processed(name, lambda _: probe, {}))

    def _processed(
        self, name: str, read: Callable[[str], Array], gathered: dict[str, Tensor]
    ) -> Iterator[Array]:
        """What the processor gives back for each part; what it stores itself goes into `gathered`."""
        for part in self.parts[name]:
            array = read(part)
            try:
                result = self.processor.process(
                    weights=array,
                    name=part,
                    tensor_key_mapping=self.name_map,
                    parsed_parameters={"tensors": gathered},
                )
            except Exception as error:  # shapes and heads are a stranger's
                raise CheckpointError(
                    f"{self.source.path}: transformers cannot turn {part!r} of shape {array.shape} into "
                    f"{name!r} ({str(error)[:200]}); the file's shapes and settings contradict each other"
                ) from error
            if result.name is not None:
                yield result.weights

    def _require(self, name: str) -> None:
        if name not in self.parts:
            raise CheckpointError(f"{self.source.path}: no tensor for {name!r}")


@dataclass(frozen=True)
class ModelOutline:
    """A model as transformers' map of GGUF names asks for it, without the insides of its blocks.

    That map is made anew for every module of the model, and each time for all layers: seconds for 32 layers,
    minutes for some hundred. Inside a block nothing has a number, so no name there is one of GGUF's.
    """

    module: nn.Module
    config: PretrainedConfig

    def state_dict(self) -> Mapping[str, Tensor]:
        """The module's own."""
        return self.module.state_dict()

    def named_children(self) -> list[tuple[str, "ModelOutline"]]:
        """Down to lists of blocks."""
        if isinstance(self.module, nn.ModuleList):
            return []
        return [(name, ModelOutline(child, self.config)) for name, child in self.module.named_children()]


def open_gguf_weights(path: Path) -> GGUFWeights:
    """Check the header, then let transformers say what the tensors are. Raises CheckpointError."""
    source = open_gguf(path)
    refuse_split(path, source.scalars)
    architecture = source.scalars.get("general.architecture")
    if not isinstance(architecture, str):
        raise CheckpointError(f"{path}: general.architecture is {architecture!r}; expected a name")
    refuse_endless(source.scalars, len(source.tensors), str(path))
    left_out = settings_left_out(source, architecture)
    try:
        parsed = load_gguf_checkpoint(str(path), return_tensors=False)["config"]
        parsed |= left_out
        config = CONFIG_MAPPING[parsed["model_type"]].from_dict(dict(parsed))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=parsed)
        name_map = get_gguf_hf_weights_map(ModelOutline(model, config), processor)
    except Exception as error:  # transformers may raise anything at a stranger's values
        raise CheckpointError(f"{path}: transformers cannot read this model ({reason_of(error)})") from error
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
