"""HQQ checkpoints: integer codes with a *real* zero, and each module's settings as tiny tensors beside it.

value = (code - zero) * scale, where zero is a float that HQQ has fitted, no integer; so an offset in the
vocabulary here. The weight is laid out as a matrix of groups first: axis 1 makes each group a row (a run of
the flattened weight, which may straddle rows of the weight), axis 0 a column (weights that lie count / size
apart). HQQ itself computes in the dtype it was run with; in float32 the values here are equal to its own, in
16 bits it rounds the difference and then the product.

The tensors are what transformers 4 and HQQ's `save_to_safetensors` write. HQQ's own `save_quantized` writes a
pickle, which is refused. Scales or zeros that are quantized themselves were dropped by HQQ and never had a
safetensors form.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from quantriage.checkpoint.safetensors_source import SafetensorsSource
from quantriage.errors import CheckpointError
from quantriage.formats.hqq_packing import PACKINGS, Packing, packed_rows, unpack
from quantriage.formats.packed_modules import FLOATS, PackedModules, PackedWeight, bytes_of, part
from quantriage.numerics.schemes import SCALE_BITS, IntGrid, PerGroup, Scheme
from quantriage.numerics.stored_weight import StoredWeight

METHOD = "hqq"
_CODES = "W_q"
_LEVELS = {8: 256, 6: 64, 5: 32, 4: 16, 3: 8, 2: 4, 1: 2}  # 1.58 bits: 3 levels, stored as a float
_TERNARY = 1.58
_SETTINGS = (
    *("nbits", "group_size", "shape", "axis", "packing", "unpack_view_dtype", "view_as_float"),
    *("quant_scale", "quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict"),
    *("stores_quant_config", "channel_wise", "optimize", "round_zero"),
)
_PARTS = (_CODES, "scale", "zero", *_SETTINGS)
_ELSEWHERE = ("zero_scale", "zero_q", "scale_q", "meta_zero", "meta_scale", "meta")
_LONGEST_WORD = 64  # bytes of a setting that is text


@dataclass(frozen=True)
class HqqWeight:
    """The weight of `module`; use `read_hqq`, which has checked the numbers here.

    rows, columns: of the matrix of groups; group_shape: of scale and zero, [rows, 1], [1, columns] or one.
    """

    source: SafetensorsSource
    module: str
    shape: tuple[int, int]
    packing: Packing
    levels: int
    rows: int
    columns: int
    group_shape: tuple[int, ...]

    def dequantize(self) -> Tensor:
        """float32 [out, in]."""
        codes = self._codes().to(torch.float32)
        return codes.sub_(self._real("zero")).mul_(self._real("scale")).reshape(self.shape)

    def stored(self) -> StoredWeight:
        """Codes [out, in]; scale and offset (the value of code 0), [out, groups] if groups are runs of a row.

        Else they have HQQ's own shape. Zeros that are integers are also given as such, with their scheme.
        """
        scale, zero = self._real("scale"), self._real("zero")
        width = self.columns if self.group_shape == (self.rows, 1) else 0
        in_rows = width > 0 and self.shape[1] % width == 0
        if in_rows:
            scale, zero = (t.reshape(self.shape[0], self.shape[1] // width) for t in (scale, zero))
        integer = bool(((zero == zero.round()) & (zero >= 0) & (zero < self.levels)).all())
        exact = in_rows and integer and self.levels in _LEVELS.values() and self.levels > 2
        dtype = self.source.meta(f"{self.module}.scale").dtype
        scheme = None
        for scale_dtype in SCALE_BITS:
            if exact and dtype == scale_dtype:
                scheme = Scheme(IntGrid(self.levels.bit_length() - 1, False), PerGroup(width), scale_dtype)
        return StoredWeight(
            layout=f"hqq-axis{0 if self.group_shape[0] == 1 else 1}",
            shape=self.shape,
            levels=self.levels,
            nbytes=bytes_of(self.source, tuple(f"{self.module}.{name}" for name in _PARTS)),
            codes=self._codes().reshape(self.shape),
            scale=scale,
            scale_dtype=dtype,
            zero_point=zero.to(torch.uint8) if scheme is not None else None,
            offset=-zero * scale,
            scheme=scheme,
        )

    def _codes(self) -> Tensor:
        """uint8 [rows, columns]; the size was checked on opening."""
        words = self.source.get(f"{self.module}.{_CODES}").reshape(-1).view(self.packing.dtype)
        codes = unpack(words.view(-1, self.columns), self.packing, self.rows)
        if self.levels < 1 << self.packing.bits and int(codes.max()) >= self.levels:
            raise CheckpointError(
                f"{self.module}.{_CODES}: holds the code {int(codes.max())}, nbits allows {self.levels} "
                "levels; the file is damaged, fetch it again"
            )
        return codes

    def _real(self, name: str) -> Tensor:
        """`scale` or `zero` in float32."""
        return part(self.source, f"{self.module}.{name}", FLOATS, self.group_shape).to(torch.float32)


def open_hqq(
    source: SafetensorsSource,
    quantization: Mapping[str, object],  # noqa: ARG001 - every module carries its own settings
    where: str,
) -> PackedModules:
    """See packed modules as weights. Raises CheckpointError for parts that do not belong together."""
    packed: dict[str, PackedWeight] = {}
    visible: list[str] = []
    for name in source.names():
        module, _, last = name.rpartition(".")
        of_packed = f"{module}.{_CODES}" in source.entries
        if of_packed and last in _ELSEWHERE:
            raise CheckpointError(
                f"{where}: {name}: scales that are quantized or kept apart (offload_meta) are not read; "
                "quantize again with the defaults of HQQ"
            )
        if last == _CODES:
            if f"{module}.weight" in source.entries:
                raise CheckpointError(f"{where}: {module}.weight is stored both packed and dense")
            packed[f"{module}.weight"] = read_hqq(source, module)
            visible.append(f"{module}.weight")
        elif not of_packed and last in _SETTINGS:
            raise CheckpointError(f"{where}: {name} without {module}.{_CODES}; fetch the checkpoint again")
        elif not (of_packed and last in _PARTS):
            visible.append(name)
    return PackedModules(source, packed, tuple(visible))


def read_hqq(source: SafetensorsSource, module: str) -> HqqWeight:
    """The packed weight of `module`, its settings held against the bytes. Raises CheckpointError."""
    shape = _shape(source, module)
    count, axis = prod(shape), _integer(source, module, "axis")
    packing_name = _word(source, f"{module}.packing")
    packing = PACKINGS.get(packing_name)
    levels, bits = _levels(source, module)
    if packing is None or (packing.bits != bits and not (bits in (5, 6) and packing.bits == 8)):
        raise CheckpointError(
            f"{module}.packing: {packing_name!r} with nbits {bits}; one of {list(PACKINGS)}"
        )
    if axis not in (0, 1):
        raise CheckpointError(f"{module}.axis: {axis}; expected 0 or 1")
    for flag in ("quant_scale", "quant_zero", "offload_meta"):
        if _flag(source, f"{module}.{flag}"):
            raise CheckpointError(f"{module}.{flag}: is set, which is not read; quantize again without it")
    if not _flag(source, f"{module}.channel_wise", missing=True):
        rows, columns, group_shape = *shape, source.meta(f"{module}.scale").shape
        if prod(group_shape) != 1:
            raise CheckpointError(
                f"{module}.scale: {group_shape}; one scale is expected without channel_wise"
            )
    else:
        size = _integer(source, module, "group_size")
        if not 0 < size <= count or count % size:
            raise CheckpointError(f"{module}.group_size: {size} does not divide the {count} weights")
        rows, columns = (count // size, size) if axis == 1 else (size, count // size)
        group_shape = (rows, 1) if axis == 1 else (1, columns)
    words = packed_rows(packing, rows)
    stored = source.meta(f"{module}.{_CODES}").nbytes
    if words is None or words * columns * packing.dtype.itemsize != stored:
        raise CheckpointError(
            f"{module}.{_CODES}: {stored} bytes do not hold {rows} x {columns} codes as {packing_name}; its "
            "shape, group_size or axis do not belong to it, fetch the checkpoint again"
        )
    return HqqWeight(source, module, shape, packing, levels, rows, columns, group_shape)


def _shape(source: SafetensorsSource, module: str) -> tuple[int, int]:
    """The weight's [out, in]."""
    rows, columns = part(source, f"{module}.shape", (torch.int64, torch.int32), (2,)).tolist()
    if not (0 < rows < 1 << 31 and 0 < columns < 1 << 31):
        raise CheckpointError(f"{module}.shape: [{rows}, {columns}] is no shape")
    return rows, columns


def _levels(source: SafetensorsSource, module: str) -> tuple[int, int]:
    """Code points, and the bits that hold them."""
    bits = float(part(source, f"{module}.nbits", (torch.int32, torch.int64, torch.float32), ()))
    if abs(bits - _TERNARY) < 1e-6:
        return 3, 2
    if bits not in _LEVELS:
        raise CheckpointError(f"{module}.nbits: {bits}; one of {[*_LEVELS, _TERNARY]} is expected")
    return _LEVELS[int(bits)], int(bits)


def _integer(source: SafetensorsSource, module: str, name: str) -> int:
    return int(part(source, f"{module}.{name}", (torch.int32, torch.int64), ()))


def _flag(source: SafetensorsSource, name: str, missing: bool = False) -> bool:
    """A stored truth value; `missing` if it is not stored, as in older files."""
    return bool(part(source, name, (torch.uint8, torch.bool), ())) if name in source.entries else missing


def _word(source: SafetensorsSource, name: str) -> str:
    """A stored word: one byte a letter."""
    if name in source.entries and source.meta(name).nbytes > _LONGEST_WORD:
        raise CheckpointError(f"{name}: {source.meta(name).nbytes} bytes; at most {_LONGEST_WORD} are read")
    return bytes(part(source, name, (torch.uint8,), None).reshape(-1).tolist()).decode("ascii", "replace")
