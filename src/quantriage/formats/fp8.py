"""Checkpoints of quant_method "fp8": float8 `m.weight` beside `m.weight_scale_inv`, one for each block.

DeepSeek's layout, which transformers writes too (FineGrainedFP8). Despite its name the stored scale is what
codes are multiplied by. Without `weight_block_size` there is one scale to a weight; `m.weight_scale` is an
older name for that. Scales are floats, or E8M0 exponents (as a type of their own or as bytes). Blocks at the
edges may be cut short, as in DeepSeek's own reader; transformers refuses those. Experts stored as one tensor
and FP4 experts are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.checkpoint.safetensors_source import SafetensorsSource
from quantriage.errors import CheckpointError
from quantriage.formats.compressed_parts import FLOAT_SCALES, fit, matrix
from quantriage.formats.compressed_plain import FLOAT8, exponent_scale
from quantriage.formats.packed_modules import PackedModules, bytes_of
from quantriage.numerics.coded_weight import CodedWeight, PerBlock, ScaleLayout
from quantriage.numerics.schemes import PerTensor
from quantriage.numerics.stored_weight import StoredWeight

METHOD = "fp8"
_SCALES = ("weight_scale_inv", "weight_scale")
_HIDDEN = (*_SCALES, "activation_scale", "input_scale", "output_scale", "k_scale", "v_scale")


@dataclass(frozen=True)
class Float8Weight:
    """The float8 weight of one module."""

    source: SafetensorsSource
    module: str
    layout: ScaleLayout

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in], from the header."""
        found = self.source.meta(f"{self.module}.weight").shape
        if len(found) != 2:
            raise CheckpointError(f"{self.module}: float8 weight of shape {found}; [out, in] is read")
        return found[0], found[1]

    def dequantize(self) -> Tensor:
        """float32 [out, in], exact but for float32 scales, where each product is rounded once."""
        return self._read().dequantize()

    def stored(self) -> StoredWeight:
        """Codes are E4M3 or E5M2 bit patterns."""
        names = (f"{self.module}.weight", *(f"{self.module}.{part}" for part in _SCALES))
        return self._read().stored(METHOD, bytes_of(self.source, names))

    def _read(self) -> CodedWeight:
        weight = matrix(self.module, "weight", self.source.get(f"{self.module}.weight"), tuple(FLOAT8))
        part = next((part for part in _SCALES if f"{self.module}.{part}" in self.source.entries), None)
        if part is None:
            raise CheckpointError(f"{self.module}: {_SCALES[0]} is missing from the checkpoint")
        stored = fit(self.module, part, self.source.get(f"{self.module}.{part}"), self.layout, self.shape)
        floats = stored.dtype in FLOAT_SCALES
        return CodedWeight(
            grid=FLOAT8[weight.dtype],
            layout=self.layout,
            codes=weight.view(torch.uint8),
            scale=stored.to(torch.float32) if floats else exponent_scale(self.module, stored),
            scale_dtype=str(stored.dtype).removeprefix("torch.") if floats else "float8_e8m0fnu",
        )


def open_fp8(source: SafetensorsSource, quantization: Mapping[str, object], where: str) -> PackedModules:
    """See float8 modules as weights. Raises CheckpointError for what is not read."""
    layout = _layout(quantization.get("weight_block_size"), where)
    packed: dict[str, Float8Weight] = {}
    visible: list[str] = []
    for name in source.names():
        module, _, part = name.rpartition(".")
        dtype = source.entries[name][1].dtype
        if part in _HIDDEN:
            continue
        if dtype in FLOAT8 and part == "weight":
            packed[name] = Float8Weight(source, module, layout)
        elif dtype in FLOAT8 or dtype == torch.int8:
            raise CheckpointError(
                f"{where}: {name} is {source.meta(name).dtype}; float8 weights of single modules are read, "
                "stacked or four-bit experts are not"
            )
        visible.append(name)
    return PackedModules(source, packed, tuple(visible))


def _layout(block: object, where: str) -> ScaleLayout:
    if block is None:
        return PerTensor()
    if not isinstance(block, list) or len(block) != 2 or any(type(n) is not int or n < 1 for n in block):
        raise CheckpointError(f"{where}: weight_block_size {block!r}; expected two sizes such as [128, 128]")
    return PerBlock(block[0], block[1])
