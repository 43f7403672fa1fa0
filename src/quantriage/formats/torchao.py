"""torchao checkpoints in their safetensors form: plain integer, 4-bit and float8 weights in blocks.

What each class means, q being the stored number:

    Int8Tensor, IntxUnpackedToInt8Tensor   (q - zero_point) * scale, q int8 (below 8 bits one to a byte too)
    Int4Tensor                             q * scale + zero_point: the zero point is a *real* center here,
                                           and scale and zero point are stored [groups, out]
    Float8Tensor                           q * scale

How activations are quantized at run time is also in the file and changes no weight. A scale that the engine
multiplies activations with (act_pre_scale) does, and is refused, as are classes in the order of one kernel.
Rounded to the dtype of the weight, the values here equal torchao's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from quantriage.checkpoint.safetensors_source import SafetensorsSource
from quantriage.errors import CheckpointError
from quantriage.formats.packed_modules import FLOATS, PackedModules, PackedWeight, bytes_of, part
from quantriage.formats.torchao_metadata import TensorClass, read_classes
from quantriage.numerics.schemes import (
    SCALE_BITS,
    Granularity,
    IntGrid,
    PerChannel,
    PerGroup,
    PerTensor,
    Scheme,
)
from quantriage.numerics.stored_weight import StoredWeight

METHOD = "torchao"
_INT8, _INTX, _INT4, _FLOAT8 = "Int8Tensor", "IntxUnpackedToInt8Tensor", "Int4Tensor", "Float8Tensor"
_PARTS = ("qdata", "scale", "zero_point", "act_quant_scale", "act_quant_zero_point")
_FLOAT8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
_ZERO_DTYPES = (torch.int8, *FLOATS)


@dataclass(frozen=True)
class TorchaoWeight:
    """One weight; use `read_weight`, which has checked the numbers here. `block`: [rows, columns] a scale."""

    source: SafetensorsSource
    entry: TensorClass
    shape: tuple[int, int]
    block: tuple[int, int]
    bits: int

    def dequantize(self) -> Tensor:
        """float32 [out, in]."""
        (rows, columns), (height, width) = self.shape, self.block
        values = self._numbers().to(torch.float32).view(rows // height, height, columns // width, width)
        scale, zero = self._scale()[:, None, :, None], self._zero()
        if zero is None:
            return values.mul_(scale).view(self.shape)
        zero = zero[:, None, :, None]
        if self.entry.kind == _INT4:
            return values.mul_(scale).add_(zero).view(self.shape)
        return values.sub_(zero).mul_(scale).view(self.shape)

    def stored(self) -> StoredWeight:
        """Codes from 0 [out, in] (float8: the bits); scale, zero points and offsets one to a block."""
        scale, zero, center = self._scale(), self._zero(), 1 << (self.bits - 1)
        float8 = self.entry.kind == _FLOAT8
        scheme, zero_point, offset = None, None, None
        if self.entry.kind == _INT4 and zero is not None:
            offset = zero - center * scale
        elif not float8:
            scheme, zero_point, offset = self._integers(scale, torch.zeros(()) if zero is None else zero)
        numbers = self._numbers()
        codes = numbers.view(torch.uint8)
        if not float8:
            if int(numbers.min()) < -center or int(numbers.max()) >= center:
                raise CheckpointError(f"{self.entry.name}: codes beyond {self.bits} bits")
            codes = codes + center  # modulo 256, which is what adds to a negative number
        return StoredWeight(
            layout=self.entry.kind,
            shape=self.shape,
            levels=1 << self.bits,
            nbytes=bytes_of(self.source, tuple(self.entry.part_name(name) for name in self.entry.parts)),
            codes=codes,
            scale=scale,
            scale_dtype=self.source.meta(self.entry.part_name("scale")).dtype,
            zero_point=zero_point,
            offset=offset,
            scheme=scheme,
        )

    def _integers(self, scale: Tensor, zero: Tensor) -> tuple[Scheme | None, Tensor | None, Tensor | None]:
        """Scheme, integer zero points, real offsets: those that there are; `zero` counts from the center."""
        codes = zero + (1 << (self.bits - 1))
        if not bool(((codes == codes.round()) & (codes >= 0) & (codes < 1 << self.bits)).all()):
            return None, None, -codes * scale
        symmetric = not bool(zero.any())
        scheme, granularity = None, self._granularity()
        for dtype in SCALE_BITS:
            known = self.source.meta(self.entry.part_name("scale")).dtype == dtype
            if known and granularity is not None and self.bits >= 2:
                scheme = Scheme(IntGrid(self.bits, symmetric), granularity, dtype)
        return scheme, None if symmetric else codes.to(torch.uint8), None

    def _granularity(self) -> Granularity | None:
        """What shares a scale, if it is a tensor, a row or a run of a row."""
        if self.block == self.shape:
            return PerTensor()
        if self.block[0] != 1:
            return None
        return PerChannel() if self.block[1] == self.shape[1] else PerGroup(self.block[1])

    def _numbers(self) -> Tensor:
        """What is stored, one number a weight: int8, or float8 [out, in]."""
        stored = self.source.get(self.entry.part_name("qdata"))
        if self.entry.kind != _INT4:
            return stored
        octets = stored.view(torch.int8)
        low = (octets << 4) >> 4  # arithmetic shifts extend the sign
        return torch.stack([low, octets >> 4], dim=-1).view(self.shape)

    def _scale(self) -> Tensor:
        """float32 [blocks down, blocks across]."""
        return self._grid("scale", FLOATS)

    def _zero(self) -> Tensor | None:
        """float32 as the scale; None if none is stored."""
        return self._grid("zero_point", _ZERO_DTYPES) if "zero_point" in self.entry.parts else None

    def _grid(self, name: str, dtypes: tuple[torch.dtype, ...]) -> Tensor:
        """One number for each block, which is stored with or without dimensions of one."""
        down, across = (size // step for size, step in zip(self.shape, self.block, strict=True))
        stored = self.entry.part_name(name)
        if self.entry.kind == _INT4:
            return part(self.source, stored, FLOATS, (across, down)).T.to(torch.float32)
        found = part(self.source, stored, dtypes, None)
        if found.numel() != down * across:
            raise CheckpointError(
                f"{stored}: {tuple(found.shape)}; expected one for each of {down} x {across} blocks"
            )
        return found.reshape(down, across).to(torch.float32)


def open_torchao(
    source: SafetensorsSource,
    quantization: Mapping[str, object],  # noqa: ARG001 - the header's metadata says what each weight is
    where: str,
) -> PackedModules:
    """See weights in parts as weights. Raises CheckpointError for a class that is not read, and names it."""
    classes = read_classes(source.metadata(), where)
    packed: dict[str, PackedWeight] = {name: read_weight(source, entry) for name, entry in classes.items()}
    owners = {e.part_name(name): e.name for e in classes.values() for name in e.parts}
    visible: dict[str, None] = {}
    for name in source.names():
        module, _, last = name.rpartition(".")
        if last.startswith("_weight_") and name not in owners:
            raise CheckpointError(f"{where}: {name} is no part of {module}.weight by the header's metadata")
        if name in packed:
            raise CheckpointError(f"{where}: {name} is stored both whole and in parts; the file is damaged")
        visible[owners.get(name, name)] = None
    return PackedModules(source, packed, tuple(visible))


def read_weight(source: SafetensorsSource, entry: TensorClass) -> TorchaoWeight:
    """The weight of one entry, held against the stored numbers. Raises CheckpointError."""
    _check_parts(source, entry)
    stored = entry.part_name("qdata")
    dtypes: tuple[torch.dtype, ...] = _FLOAT8_DTYPES if entry.kind == _FLOAT8 else (torch.int8,)
    if entry.kind == _INT4:
        shape, dtypes = entry.sizes("shape"), (torch.int8, torch.uint8)
        part(source, stored, dtypes, (shape[0], shape[1] // 2))
    else:
        sizes = part(source, stored, dtypes, None).shape
        if len(sizes) != 2 or 0 in sizes:
            raise CheckpointError(f"{stored}: {tuple(sizes)}; expected [out, in]")
        shape = (sizes[0], sizes[1])
    block = _scaled_block(source, entry, shape) if entry.kind == _FLOAT8 else entry.sizes("block_size")
    in_rows = entry.kind != _INT4 or (block[0] == 1 and shape[1] % 2 == 0)
    if shape[0] % block[0] or shape[1] % block[1] or not in_rows:
        raise CheckpointError(f"{entry.name}: blocks of {block} do not divide {shape}")
    return TorchaoWeight(source, entry, shape, block, _bits(entry))


def _check_parts(source: SafetensorsSource, entry: TensorClass) -> None:
    """The class is known, has what it needs, and nothing that would change its values."""
    if entry.kind not in (_INT8, _INTX, _INT4, _FLOAT8):
        raise CheckpointError(
            f"{entry.name}: torchao's {entry.kind[:80]} is not read; {_INT8}, {_INTX}, {_INT4} and {_FLOAT8} "
            "are. Layouts packed for one kernel can be saved again from the original in a plain one"
        )
    needed = {"qdata", "scale"} | ({"zero_point"} if entry.kind in (_INTX, _INT4) else set())
    if not needed <= set(entry.parts) or len(set(entry.parts)) != len(entry.parts):
        raise CheckpointError(f"{entry.name}: {entry.kind} of {entry.parts}; {sorted(needed)} are expected")
    for name in entry.parts:
        if name not in _PARTS:
            raise CheckpointError(f"{entry.name}: {entry.kind} with {name[:80]}, which changes it: not read")
        source.meta(entry.part_name(name))


def _bits(entry: TensorClass) -> int:
    """Bits of a stored number."""
    if entry.kind != _INTX:
        return 4 if entry.kind == _INT4 else 8
    widths = {f"int{bits}": bits for bits in range(1, 9)}
    target = entry.dtype("target_dtype")
    if target not in widths:
        raise CheckpointError(f"{entry.name}: target_dtype {target[:80]}; one of {list(widths)} is expected")
    return widths[target]


def _scaled_block(source: SafetensorsSource, entry: TensorClass, shape: tuple[int, int]) -> tuple[int, int]:
    """The block of a float8 weight: torchao takes it from the scale's shape, not from the metadata."""
    sizes = source.meta(entry.part_name("scale")).shape
    if prod(sizes) == 1:
        return shape
    if len(sizes) != 2 or 0 in sizes or shape[0] % sizes[0] or shape[1] % sizes[1]:
        raise CheckpointError(f"{entry.part_name('scale')}: {sizes} scales do not divide {shape}")
    return shape[0] // sizes[0], shape[1] // sizes[1]
