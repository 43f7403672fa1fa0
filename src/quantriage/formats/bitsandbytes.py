"""bitsandbytes checkpoints: 8-bit rows (LLM.int8) and 4-bit blocks (bitsandbytes_4bit), told by the parts.

An 8-bit weight is int8 `m.weight` with the largest magnitude of each row in `m.SCB`; its value is
weight * SCB / 127. `m.weight_format` says how rows are laid out; only plain rows are written since 0.38.
The columns that LLM.int8 computes in 16 bits are chosen from the activations at run time: they are not in
the file. What is packed is decided by the files, not by the config. A module that was a Conv1D (GPT-2) is
stored [out, in], turned from what a dense checkpoint holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.checkpoint.safetensors_source import SafetensorsSource
from quantriage.errors import CheckpointError
from quantriage.formats.bitsandbytes_4bit import STATE, read_four_bit
from quantriage.formats.packed_modules import FLOATS, PackedModules, PackedWeight, bytes_of, part
from quantriage.numerics.schemes import IntGrid, PerChannel, Scheme
from quantriage.numerics.stored_weight import StoredWeight

METHOD = "bitsandbytes"
_SCALE, _FORMAT = "SCB", "weight_format"
_ROWS = 0  # the only value of weight_format that is written today
_STEP = 1 / 127


@dataclass(frozen=True)
class EightBitWeight:
    """An int8 weight `name` ("m.weight") of `shape` [out, in]."""

    source: SafetensorsSource
    name: str
    shape: tuple[int, int]

    def dequantize(self) -> Tensor:
        """float32 [out, in], with the library's own order of roundings: weight * SCB, then * (1 / 127)."""
        return self.source.get(self.name) * self._magnitudes()[:, None] * _STEP

    def stored(self) -> StoredWeight:
        """Codes [out, in] from 0; scale [out, 1]: value = (code - 128) * scale."""
        module = self.name.removesuffix("weight")
        codes = (self.source.get(self.name).view(torch.uint8)) ^ 128  # adds 128 without a wider dtype
        return StoredWeight(
            layout="int8-rows",
            shape=self.shape,
            levels=256,
            nbytes=bytes_of(self.source, (self.name, module + _SCALE, module + _FORMAT)),
            codes=codes,
            scale=(self._magnitudes() * _STEP)[:, None],
            scale_dtype=self.source.meta(module + _SCALE).dtype,
            scheme=Scheme(IntGrid(8, symmetric=True), PerChannel(), "float32"),
        )

    def _magnitudes(self) -> Tensor:
        """float32 [out]."""
        name = self.name.removesuffix("weight") + _SCALE
        return part(self.source, name, FLOATS, (self.shape[0],)).to(torch.float32)


def open_bitsandbytes(
    source: SafetensorsSource,
    quantization: Mapping[str, object],  # noqa: ARG001 - the parts tell 8 bits from 4
    where: str,
) -> PackedModules:
    """See packed modules as weights. Raises CheckpointError for parts that do not belong together."""
    packed: dict[str, PackedWeight] = {}
    for name in source.names():
        module, _, last = name.rpartition(".")
        if last.startswith("bitsandbytes__"):
            weight = module.removesuffix(".quant_state")
            if weight in packed:
                raise CheckpointError(f"{where}: {weight} has two quant_states; the file is damaged")
            packed[weight] = read_four_bit(source, weight, name.removeprefix(f"{weight}.{STATE}"))
        elif last == _SCALE:
            packed[f"{module}.weight"] = _read_eight_bit(source, module)
    visible: list[str] = []
    for name in source.names():
        owner = _owner(name)
        if owner is None:
            visible.append(name)
            if name not in packed and source.entries[name][1].dtype in (torch.int8, torch.uint8):
                raise CheckpointError(
                    f"{where}: {name} holds integers and neither {_SCALE} nor quant_state belongs to it; "
                    "the checkpoint is incomplete, fetch it again"
                )
        elif owner not in packed:
            raise CheckpointError(f"{where}: {name} belongs to {owner}, whose scales or state are missing")
    return PackedModules(source, packed, tuple(visible))


def _owner(name: str) -> str | None:
    """The weight that the part `name` belongs to; None for a tensor of its own."""
    weight, found, _ = name.partition(".weight.")
    if found:
        return f"{weight}.weight"
    module, _, last = name.rpartition(".")
    return f"{module}.weight" if last in (_SCALE, _FORMAT) else None


def _read_eight_bit(source: SafetensorsSource, module: str) -> EightBitWeight:
    """The weight that `module`.SCB belongs to."""
    weight, layout = f"{module}.weight", f"{module}.{_FORMAT}"
    if weight not in source.entries:
        raise CheckpointError(f"{weight}: is missing from the checkpoint; fetch it again")
    entry = source.entries[weight][1]
    if entry.dtype != torch.int8 or len(entry.meta.shape) != 2 or 0 in entry.meta.shape:
        raise CheckpointError(f"{weight}: is {entry.meta.dtype} {entry.meta.shape}; expected int8 [out, in]")
    if layout in source.entries and int(part(source, layout, (torch.uint8,), ())) != _ROWS:
        raise CheckpointError(
            f"{layout}: not stored row by row but for one kind of GPU, as releases before 0.38 did; quantize "
            "the original again with a current bitsandbytes"
        )
    rows, columns = entry.meta.shape
    return EightBitWeight(source, weight, (rows, columns))
