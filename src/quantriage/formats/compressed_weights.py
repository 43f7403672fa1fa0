"""A compressed-tensors checkpoint as a WeightSource: quantized modules appear as their weights.

The files hold `m.weight_packed` or an integer or float8 `m.weight`, `m.weight_scale`, ...; the rooms above
see `m.weight`. What is quantized is decided by what the files contain, not by the config: a module that a
group targets but that is stored dense is dense. How it is stored is what the config says, and has to fit.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.checkpoint.safetensors_source import SafetensorsSource
from quantriage.errors import CheckpointError
from quantriage.formats import compressed_fp4, compressed_plain, compressed_tensors
from quantriage.formats.compressed_groups import read_groups, scheme_for
from quantriage.formats.compressed_parts import (
    COLUMN_GROUP,
    GLOBAL_SCALE,
    PACKED,
    SCALE,
    SHAPE,
    WEIGHT,
    ZERO_POINT,
    StoredScheme,
)
from quantriage.formats.module_patterns import refuse_slow
from quantriage.numerics.coded_weight import CodedWeight
from quantriage.numerics.stored_weight import StoredWeight

Reader = Callable[[str, StoredScheme, Mapping[str, Tensor]], CodedWeight]
"""(module, scheme, its parts by short name) -> weight; raises CheckpointError."""

_PLAIN, _FP4 = (WEIGHT, SCALE, ZERO_POINT, COLUMN_GROUP), (PACKED, SCALE, GLOBAL_SCALE)
READERS: dict[str, tuple[Reader, tuple[str, ...]]] = {  # by format: how to read it, and from which parts
    compressed_tensors.FORMAT: (
        compressed_tensors.read_coded,
        (PACKED, SCALE, ZERO_POINT, SHAPE, COLUMN_GROUP),
    ),
    compressed_plain.INT: (compressed_plain.read, _PLAIN),
    compressed_plain.FLOAT: (compressed_plain.read, _PLAIN),
    compressed_plain.NAIVE: (compressed_plain.read, _PLAIN),
    compressed_plain.MXFP8: (compressed_plain.read, _PLAIN),
    compressed_fp4.NVFP4: (compressed_fp4.read, _FP4),
    compressed_fp4.MXFP4: (compressed_fp4.read, _FP4),
}
_HIDDEN = frozenset((PACKED, SCALE, ZERO_POINT, SHAPE, COLUMN_GROUP, GLOBAL_SCALE)) | {
    f"{what}_{part}"  # of activations, of attention and of its cache: an engine's business
    for what in ("input", "output", "q", "k", "v")
    for part in ("scale", "zero_point", "global_scale")
}
_REFUSED = ("bitmask", "compressed")  # parts of the sparse formats
_CODES = ("int8", "float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True)
class CompressedWeights:
    """A WeightSource over quantized safetensors. Use `open_compressed`."""

    source: SafetensorsSource
    schemes: Mapping[str, StoredScheme]  # by quantized module
    visible: tuple[str, ...]

    def names(self) -> tuple[str, ...]:
        """Tensor names with every quantized module as one weight."""
        return self.visible

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape from the header, or from a packed module's stored shape."""
        module = name.removesuffix(".weight")
        if name == module or module not in self.schemes or PACKED not in self._parts(module):
            return self.source.meta(name).shape
        packed = self.source.meta(f"{module}.{PACKED}").shape
        if self.schemes[module].format != compressed_tensors.FORMAT:
            return (*packed[:-1], 2 * packed[-1]) if packed else ()
        stored = self.source.get(f"{module}.{SHAPE}")
        sizes = stored.tolist() if stored.dtype == torch.int64 and tuple(stored.shape) == (2,) else [0, 0]
        if not packed or sizes[0] != packed[0] or sizes[1] < 1:
            raise CheckpointError(f"{module}: {SHAPE} does not fit {PACKED}")
        return packed[0], sizes[1]

    def get(self, name: str) -> Tensor:
        """The tensor as stored, or the float32 product of a quantized module."""
        module = name.removesuffix(".weight")
        quantized = name != module and module in self.schemes
        return self._read(module).dequantize() if quantized else self.source.get(name)

    def stored(self, module: str) -> StoredWeight | None:
        """The quantized weight of a module, or None if it is stored dense."""
        if module not in self.schemes:
            return None
        nbytes = sum(self.source.meta(f"{module}.{part}").nbytes for part in self._parts(module))
        return self._read(module).stored(self.schemes[module].format, nbytes)

    def _read(self, module: str) -> CodedWeight:
        scheme = self.schemes[module]
        parts = {part: self.source.get(f"{module}.{part}") for part in self._parts(module)}
        return READERS[scheme.format][0](module, scheme, parts)

    def _parts(self, module: str) -> list[str]:
        """Short names of the tensors stored for a quantized module."""
        parts = READERS[self.schemes[module].format][1]
        return [part for part in parts if f"{module}.{part}" in self.source.entries]


def open_compressed(
    source: SafetensorsSource, quantization: Mapping[str, object], where: str
) -> CompressedWeights:
    """See quantized modules as weights. Raises CheckpointError for a part that is not read."""
    groups = read_groups(quantization, where)
    schemes: dict[str, StoredScheme] = {}
    visible: dict[str, None] = {}  # in the order of the file
    started = time.process_time()
    for name in source.names():
        refuse_slow(started, where)
        module, _, part = name.rpartition(".")
        if part in _REFUSED:
            raise CheckpointError(f"{where}: tensor {name!r} belongs to a sparse format, which is not read")
        if part in (PACKED, SCALE) or (part == WEIGHT and source.meta(name).dtype in _CODES):
            if module not in schemes:
                schemes[module] = scheme_for(module, groups, where)
            visible.setdefault(f"{module}.{WEIGHT}")
        elif part not in _HIDDEN:
            visible.setdefault(name)
    return CompressedWeights(source, schemes, tuple(visible))
