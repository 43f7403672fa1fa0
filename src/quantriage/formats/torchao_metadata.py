"""What a safetensors header says of torchao's tensor classes: for each weight, its class, parts and blocks.

torchao takes a quantized weight "m.weight" apart into `m._weight_qdata`, `m._weight_scale`, ... and leaves a
JSON text under the weight's name in the header's metadata. The text names classes, but nothing here looks one
up: a class is a word that is known or refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from quantriage.checkpoint.strict_json import parse_object
from quantriage.errors import CheckpointError

NAMES = "tensor_names"
PLAIN = "Tensor"
_LARGEST_TEXT = 100_000  # bytes of one weight's JSON; a real one has a few hundred


@dataclass(frozen=True)
class TensorClass:
    """One weight's entry: the class, its attributes as JSON values, the names of its parts."""

    name: str
    kind: str
    attributes: Mapping[str, object]
    parts: tuple[str, ...]

    def part_name(self, part: str) -> str:
        """The tensor that holds `part`."""
        module, _, last = self.name.rpartition(".")
        return f"{module}._{last}_{part}"

    def sizes(self, key: str) -> tuple[int, int]:
        """Two positive sizes: a block, or a shape."""
        match self.attributes.get(key):
            case [int(rows), int(columns)] if 0 < rows < 1 << 31 and 0 < columns < 1 << 31:
                return int(rows), int(columns)  # true is an int to Python
        raise CheckpointError(
            f"{self.name}: {self.kind} with {key} {str(self.attributes.get(key))[:80]}; "
            "expected two positive sizes"
        )

    def dtype(self, key: str) -> str:
        """torch's name of a dtype."""
        match self.attributes.get(key):
            case {"_type": "torch.dtype", "_data": str(dtype)}:
                return dtype
        raise CheckpointError(f"{self.name}: {self.kind} without a dtype under {key}")


def read_classes(metadata: Mapping[str, str], where: str) -> dict[str, TensorClass]:
    """The quantized weights by name. Raises CheckpointError."""
    if NAMES not in metadata:
        raise CheckpointError(
            f"{where}: quantized by torchao, but the safetensors header has no {NAMES}; it was lost when the "
            "file was saved again, or is older than torchao's safetensors form: fetch the original, or save "
            "it again with torchao 0.15 or later"
        )
    found: dict[str, TensorClass] = {}
    for name, text in metadata.items():
        if "." not in name:  # "format" and the list of names
            continue
        here = f"{where}: metadata of {name[:200]!r}"
        if len(text) > _LARGEST_TEXT:
            raise CheckpointError(f"{here}: {len(text)} characters, at most {_LARGEST_TEXT} are read")
        match parse_object(text, here):
            case {"_type": str(kind)} if kind == PLAIN:
                continue
            case {"_type": str(kind), "_data": dict(attributes), "_tensor_data_names": list(parts)}:
                if not all(isinstance(part, str) for part in parts):
                    raise CheckpointError(f"{here}: _tensor_data_names are not texts")
                found[name] = TensorClass(name, kind, attributes, tuple(parts))
            case _:
                raise CheckpointError(f"{here}: expected _type, _data and _tensor_data_names")
    return found
