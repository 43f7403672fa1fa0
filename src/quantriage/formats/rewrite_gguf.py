"""GGUF files written again: types are named in the header of each tensor, so that any may change."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from quantriage.checkpoint.new_folder import new_folder
from quantriage.errors import CheckpointError
from quantriage.formats.checkpoint import Checkpoint
from quantriage.formats.gguf import GGUFWeights
from quantriage.formats.gguf_encode import ENCODERS, bits_per_weight, types_above
from quantriage.formats.gguf_parts import encode_parts
from quantriage.formats.gguf_writer import rewrite_gguf
from quantriage.formats.rewrite import Replacement, Rounding, Way
from quantriage.numerics.schemes import Scheme

_TRIED = 4  # larger types offered; the search for k-quants takes its time


@dataclass(frozen=True)
class GGUFRewriter:
    """A Rewriter over a GGUF file. llama.cpp joins no weights, and its own mixes differ within q, k and v."""

    path: Path
    weights: GGUFWeights
    fuses: bool = False

    @staticmethod
    def of(checkpoint: Checkpoint) -> "GGUFRewriter":
        """For a checkpoint of kind "gguf"."""
        assert isinstance(checkpoint.weights, GGUFWeights)
        return GGUFRewriter(checkpoint.path, checkpoint.weights)

    def own(self, name: str) -> Way | str:
        """The tensor's type, if there is an encoder for it."""
        kinds = {self.weights.source.tensors[part].kind.name for part in self.weights.parts[name]}
        kind = kinds.pop()
        if kinds:
            return f"its parts have several types, {kind} and {', '.join(sorted(kinds))}"
        if kind not in ENCODERS:
            return f"there is no encoder of {kind} here"
        return self._way(name, kind)

    def raised(self, name: str, menu: Sequence[Scheme]) -> tuple[Way, ...]:  # noqa: ARG002 - types, not schemes
        """The next larger types."""
        shapes = self.weights.part_shapes(name)
        kinds = [self.weights.source.tensors[part].kind.name for part in shapes]
        columns = {shape[-1] for shape in shapes.values()}
        if len(columns) > 1 or any(len(shape) < 2 for shape in shapes.values()):
            return ()
        largest = max(kinds, key=bits_per_weight)
        return tuple(self._way(name, kind) for kind in types_above(largest, columns.pop())[:_TRIED])

    def replace(self, name: str, way: Way, tensor: Tensor, rounding: Rounding | None) -> Replacement:
        """Encoded part by part; columns weigh what the rounding says of their importance."""
        importance = None if rounding is None else rounding.importance
        parts = encode_parts(self.weights, name, tensor)
        raw: dict[str, Tensor] = {}
        for part, values in parts.items():
            rows = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
            if importance is not None and len(importance) != rows.shape[1]:
                raise CheckpointError(
                    f"{name}: {len(importance)} inputs, but rows of {rows.shape[1]} in the file"
                )
            raw[part] = ENCODERS[way.label](rows, importance).contiguous()
        shapes = self.weights.part_shapes(name)

        def read(part: str) -> np.ndarray[Any, Any]:
            values = dequantize(raw[part].numpy(), GGMLQuantizationType[way.label])
            return np.ascontiguousarray(values, dtype=np.float32).reshape(shapes[part])

        return Replacement(name, raw, self.weights.assemble(name, read), way)

    def write(self, replacements: Sequence[Replacement], out: Path) -> Path:
        """One file of the same name in `out`."""
        entries = {
            part: (item.way.label, raw.numpy().tobytes())
            for item in replacements
            for part, raw in item.tensors.items()
        }
        with new_folder(out) as folder:
            rewrite_gguf(self.path, folder / self.path.name, entries)
        return out / self.path.name

    def _way(self, name: str, kind: str) -> Way:
        count = sum(prod(shape) for shape in self.weights.part_shapes(name).values())
        return Way(kind, int(count * bits_per_weight(kind) / 8))
