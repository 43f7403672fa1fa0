"""bitsandbytes' 4-bit weights, NF4 and FP4: a table of sixteen values times the largest magnitude of a block.

Blocks run over the flattened weight, so one may straddle rows. Two codes fill a byte, the first in the high
bits. Double quantization stores the magnitudes in 8 bits too: a table of 256 values times the magnitude of a
block of blocks, plus one offset. What is no tensor (shape, block sizes, offset) is JSON text in a tensor of
bytes. The packed bytes may be stored as any dtype (`quant_storage`).

In float32 the product equals the library's own, which multiplies and then rounds to the model's dtype.
The library takes the sixteen values from its kernels and not from the file, so a file with others is refused.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from quantriage.checkpoint.safetensors_source import SafetensorsSource
from quantriage.checkpoint.strict_json import parse_object
from quantriage.errors import CheckpointError
from quantriage.formats.packed_modules import bytes_of, part
from quantriage.numerics.stored_weight import StoredWeight

STATE = "quant_state.bitsandbytes__"
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_LARGEST_STATE = 4096  # bytes; a real one has under 200
_LARGEST = 3.4e38  # the end of float32
_BLOCK_SIZES = tuple(1 << power for power in range(5, 13))  # what the library's kernels take, 32 to 4096
_STATE_KEYS = {"quant_type", "blocksize", "dtype", "shape"}
_NESTED_KEYS = {"nested_blocksize", "nested_dtype", "nested_offset"}
# Quantiles of the normal distribution, scaled to [-1, 1] and with an exact zero: QLoRA, appendix E.
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_FP4_HALF = tuple(value / 12 for value in (0, 0.0625, 8, 12, 4, 6, 2, 3))
TABLES = {"nf4": _NF4, "fp4": (*_FP4_HALF, *(-value for value in _FP4_HALF))}


@dataclass(frozen=True)
class Nested:
    """How the magnitudes are quantized themselves."""

    blocksize: int
    offset: float


@dataclass(frozen=True)
class FourBitWeight:
    """A 4-bit weight `name` ("m.weight"); use `read_four_bit`, which has checked the numbers here."""

    source: SafetensorsSource
    name: str
    quant_type: str
    shape: tuple[int, int]
    blocksize: int
    nested: Nested | None

    def dequantize(self) -> Tensor:
        """float32 [out, in]. Peak memory: the result, and half of it for indices."""
        table, magnitudes = self._table(), self._magnitudes()
        pairs = torch.stack([table.repeat_interleave(16), table.repeat(16)], dim=1)  # byte to two values
        count = prod(self.shape)
        values = pairs.index_select(0, self._packed().to(torch.int32)).view(-1)[:count]
        blocks = count // self.blocksize
        whole = blocks * self.blocksize
        values[:whole].view(blocks, self.blocksize).mul_(magnitudes[:blocks, None])
        values[whole:].mul_(magnitudes[-1])
        return values.view(self.shape)

    def stored(self) -> StoredWeight:
        """Codes [out, in] into the table; scale [blocks]: the magnitudes."""
        table = self._table()
        packed = self._packed()
        codes = torch.stack([packed >> 4, packed & 15], dim=1).view(-1)[: prod(self.shape)]
        names = (self.name, f"{self.name}.{STATE}{self.quant_type}", *(f"{self.name}.{p}" for p in _PARTS))
        return StoredWeight(
            layout=self.quant_type,
            shape=self.shape,
            levels=16,
            nbytes=bytes_of(self.source, names),
            codes=codes.view(self.shape),
            scale=self._magnitudes(),
            scale_dtype="float32" if self.nested is None else "uint8",
            points=table,
        )

    def _packed(self) -> Tensor:
        """uint8 [ceil(weights / 2)]; the size was checked on opening."""
        return self.source.get(self.name).reshape(-1).view(torch.uint8)

    def _table(self) -> Tensor:
        """The stored table, float32 [16]."""
        found = part(self.source, f"{self.name}.quant_map", (torch.float32,), (16,))
        if not torch.allclose(found, torch.tensor(TABLES[self.quant_type]), rtol=0, atol=1e-6):
            raise CheckpointError(
                f"{self.name}.quant_map: not the table of {self.quant_type}; bitsandbytes would use its own; "
                "the file is damaged or of another type, fetch it again"
            )
        return found

    def _magnitudes(self) -> Tensor:
        """float32 [blocks]."""
        blocks = _blocks(prod(self.shape), self.blocksize)
        if self.nested is None:
            return part(self.source, f"{self.name}.absmax", (torch.float32,), (blocks,))
        size = self.nested.blocksize
        groups = _blocks(blocks, size)
        codes = part(self.source, f"{self.name}.absmax", (torch.uint8,), (blocks,))
        table = part(self.source, f"{self.name}.nested_quant_map", (torch.float32,), (256,))
        outer = part(self.source, f"{self.name}.nested_absmax", (torch.float32,), (groups,))
        per_block = outer.repeat_interleave(min(size, blocks))[:blocks]
        return table.index_select(0, codes.to(torch.int32)) * per_block + self.nested.offset


def read_four_bit(source: SafetensorsSource, name: str, quant_type: str) -> FourBitWeight:
    """The weight `name` whose state is stored under `quant_type`. Raises CheckpointError."""
    where = f"{name}.{STATE}{quant_type}"
    if quant_type not in TABLES:
        raise CheckpointError(f"{where}: unknown type; {' and '.join(TABLES)} are read")
    state = _state(source, where)
    if state["quant_type"] != quant_type:
        raise CheckpointError(f"{where}: says quant_type {state['quant_type']!r}")
    shape = _shape(state["shape"], where)
    bytes_stored = source.meta(name).nbytes if name in source.entries else -1
    if bytes_stored != (prod(shape) + 1) // 2:
        raise CheckpointError(
            f"{where}: shape {list(shape)} needs {(prod(shape) + 1) // 2} bytes of codes, "
            f"{name} has {bytes_stored if bytes_stored >= 0 else 'none'}; fetch the file again"
        )
    nested = None
    if "nested_blocksize" in state:
        offset = state["nested_offset"]
        truth = isinstance(offset, bool)
        if not (isinstance(offset, int | float) and not truth and -_LARGEST < offset < _LARGEST):
            raise CheckpointError(f"{where}: nested_offset {str(offset)[:80]} is no finite float32")
        nested = Nested(_block_size(state["nested_blocksize"], where), float(offset))
    return FourBitWeight(source, name, quant_type, shape, _block_size(state["blocksize"], where), nested)


def _state(source: SafetensorsSource, where: str) -> dict[str, object]:
    """The JSON of the state, with exactly the keys that are written."""
    size = source.meta(where).nbytes
    if size > _LARGEST_STATE:
        raise CheckpointError(f"{where}: {size} bytes of JSON, at most {_LARGEST_STATE} are read")
    text = part(source, where, (torch.uint8,), None)
    state = parse_object(bytes(text.reshape(-1).tolist()), where)
    if set(state) not in (_STATE_KEYS, _STATE_KEYS | _NESTED_KEYS):
        raise CheckpointError(f"{where}: has the keys {sorted(state)[:20]}; expected {sorted(_STATE_KEYS)}")
    return state


def _shape(value: object, where: str) -> tuple[int, int]:
    match value:
        case [int(rows), int(columns)] if 0 < rows < 1 << 31 and 0 < columns < 1 << 31:
            return int(rows), int(columns)  # true is an int to Python
    raise CheckpointError(f"{where}: shape {str(value)[:80]} is not [out, in]")


def _block_size(value: object, where: str) -> int:
    if type(value) is not int or value not in _BLOCK_SIZES:
        raise CheckpointError(f"{where}: block size {str(value)[:40]}; one of {_BLOCK_SIZES} is expected")
    return value


def _blocks(count: int, size: int) -> int:
    """Blocks of `size` that `count` values fill, the last one perhaps in part."""
    return -(-count // size)
