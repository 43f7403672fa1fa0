"""A compressed-tensors checkpoint as a WeightSource: packed modules appear as their weights.

The files hold `m.weight_packed`, `m.weight_scale`, ...; the rooms above see `m.weight`. What is packed is
decided by what the files contain, not by the config: a module that a group targets but that is stored
dense is dense.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from quantriage.checkpoint.safetensors_source import SafetensorsSource
from quantriage.errors import CheckpointError
from quantriage.formats import compressed_tensors as codec
from quantriage.formats.compressed_config import read_groups, scheme_for
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme
from quantriage.numerics.stored_weight import StoredWeight, stored_weight

_PARTS = (codec.PACKED, codec.SCALE, codec.ZERO_POINT, codec.SHAPE)
_REFUSED = ("weight_g_idx", "weight_global_scale", "bitmask", "compressed")  # other formats' parts


@dataclass(frozen=True)
class CompressedWeights:
    """A WeightSource over packed safetensors. Use `open_compressed`."""

    source: SafetensorsSource
    schemes: Mapping[str, Scheme]  # by packed module
    visible: tuple[str, ...]

    def names(self) -> tuple[str, ...]:
        """Tensor names with every packed module as one weight."""
        return self.visible

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape from the header, or from a packed module's stored shape."""
        module = name.removesuffix(".weight")
        if module not in self.schemes:
            return self.source.meta(name).shape
        rows = self.source.meta(f"{module}.{codec.PACKED}").shape[0]
        stored = self.source.get(f"{module}.{codec.SHAPE}")
        if stored.numel() != 2 or int(stored[0]) != rows:
            raise CheckpointError(f"{module}: {codec.SHAPE} does not fit {codec.PACKED}")
        return rows, int(stored[1])

    def get(self, name: str) -> Tensor:
        """The tensor as stored, or the float32 product of a packed module."""
        module = name.removesuffix(".weight")
        packed = name != module and module in self.schemes
        return self._read(module).dequantize() if packed else self.source.get(name)

    def stored(self, module: str) -> StoredWeight | None:
        """The packed weight of a module, or None if it is stored dense."""
        if module not in self.schemes:
            return None
        nbytes = sum(self.source.meta(name).nbytes for name in self._parts(module))
        return stored_weight(codec.FORMAT, self._read(module), nbytes)

    def _read(self, module: str) -> QuantizedTensor:
        tensors = {name: self.source.get(name) for name in self._parts(module)}
        return codec.read(module, self.schemes[module], tensors)

    def _parts(self, module: str) -> list[str]:
        """Names of the tensors stored for a packed module."""
        return [name for part in _PARTS if (name := f"{module}.{part}") in self.source.entries]


def open_compressed(
    source: SafetensorsSource, quantization: Mapping[str, object], where: str
) -> CompressedWeights:
    """See packed modules as weights. Raises CheckpointError for a part that is not read."""
    groups = read_groups(quantization, where)
    schemes: dict[str, Scheme] = {}
    visible: list[str] = []
    for name in source.names():
        module, _, part = name.rpartition(".")
        if part in _REFUSED:
            raise CheckpointError(f"{where}: tensor {name!r} belongs to a format that is not read yet")
        if part == codec.PACKED:
            schemes[module] = scheme_for(module, groups, where)
            visible.append(f"{module}.weight")
        elif part not in _PARTS:
            visible.append(name)
    return CompressedWeights(source, schemes, tuple(visible))
