"""The header of a GGUF file, treated as hostile: counts are compared with the bytes left before any loop.

A GGUF header is a walk: key-value pairs, some of them arrays of arrays, then tensor infos, and every
count comes from the file. gguf-py's reader believes them, so a few bytes can make it loop for hours; this
parser runs first and bounds everything that gguf-py would do afterwards. Values are skipped, not kept,
except the short scalars that say what the file is.
Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import NamedTuple

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from quantriage.checkpoint.source import TensorMeta
from quantriage.errors import CheckpointError

Scalar = int | float | bool | str

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_FILE_TYPE = "general.file_type"
_MOST_TENSORS = 1_000_000
_MOST_KEYS = 100_000
# of all arrays together: vocabularies with merges are near 1 million, and gguf-py takes 300 bytes for each
_MOST_ELEMENTS = 3_000_000
_LONGEST_STRING = 1 << 24
_LONGEST_NAME = 1 << 16
_DEEPEST_ARRAY = 4
_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
_DEFAULT_ALIGNMENT = 32
_KEPT_STRING = 256  # longer strings (templates, licences) are skipped


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor: its meta (shape in torch's order), its ggml type, and where its bytes begin in the file.

    type_at: where the header holds the type's number (4 bytes), followed by the tensor's offset (8 bytes).
    """

    meta: TensorMeta
    kind: GGMLQuantizationType
    begin: int
    type_at: int


@dataclass(frozen=True)
class GGUFHeader:
    """A checked header: short scalar values by key, and the tensors by name.

    data_start: offsets of tensors count from here; alignment: their multiple. file_type_at: where the four
    bytes of general.file_type stand, if the file says one.
    """

    scalars: Mapping[str, Scalar]
    tensors: Mapping[str, GGUFTensor]
    data_start: int
    alignment: int
    file_type_at: int | None = None


class _Info(NamedTuple):
    """A tensor info as the header has it: shape in torch's order, position and number of the type, offset."""

    name: str
    shape: tuple[int, ...]
    type_at: int
    number: int
    offset: int


def read_gguf_header(path: Path) -> GGUFHeader:
    """Parse and check the header of a GGUF file. Raises CheckpointError; time and memory are bounded."""
    try:
        size = path.stat().st_size
        if size < 24:
            raise CheckpointError(f"{path}: {size} bytes are no GGUF file; it is truncated, fetch it again")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(path, data, size).header()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


class _Walk:
    """A position in the header; every step first checks that its bytes exist."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self._path = path
        self._data = data
        self._size = size
        self._at = 0
        self._elements = 0
        self._file_type_at: int | None = None

    def header(self) -> GGUFHeader:
        """The whole header."""
        if self._data[:4] != b"GGUF":
            raise self._error("does not begin with GGUF; it is no GGUF file")
        self._at = 4
        version = self._number("I")
        if version not in (2, 3):
            hint = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
            raise self._error(f"GGUF {hint}; versions 2 and 3, little-endian, are read")
        tensor_count, key_count = self._number("Q"), self._number("Q")
        # a key with its value takes at least 13 bytes, a tensor info at least 24
        if key_count > min(_MOST_KEYS, self._left() // 13):
            raise self._error(f"header claims {key_count} keys in a file of {self._size} bytes")
        if tensor_count > min(_MOST_TENSORS, self._left() // 24):
            raise self._error(f"header claims {tensor_count} tensors in a file of {self._size} bytes")
        scalars = self._keys(key_count)
        infos = [self._tensor_info() for _ in range(tensor_count)]
        alignment = scalars.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self._error(f"general.alignment is {alignment!r}; expected a power of two")
        data_start = -(-self._at // alignment) * alignment
        tensors = self._tensors(infos, data_start, alignment)
        return GGUFHeader(scalars, tensors, data_start, alignment, self._file_type_at)

    def _keys(self, count: int) -> dict[str, Scalar]:
        """All key-value pairs; only short scalars are kept."""
        seen: set[str] = set()
        kept: dict[str, Scalar] = {}
        for _ in range(count):
            key = self._string(_LONGEST_NAME, "key")
            if key in seen:
                raise self._error(f"key {key[:80]!r} occurs twice")
            seen.add(key)
            kind = self._number("I")
            if key == _FILE_TYPE and kind == _UINT32:
                self._file_type_at = self._at
            value = self._value(kind, key, 0)
            if value is not None:
                kept[key] = value
        return kept

    def _value(self, kind: int, key: str, depth: int) -> Scalar | None:
        """One value: returned if it is a short scalar, skipped otherwise."""
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            start = self._at
            length = self._number("Q")
            self._at = start
            if length <= _KEPT_STRING:
                return self._string(_KEPT_STRING, f"value of {key[:80]!r}")
            self._skip_string(key)
            return None
        if kind != _ARRAY:
            raise self._error(f"key {key[:80]!r} has unknown value type {kind}")
        self._skip_array(key, depth)
        return None

    def _skip_array(self, key: str, depth: int) -> None:
        """Skip an array, whose elements may be arrays, after checking that so many elements can exist."""
        if depth >= _DEEPEST_ARRAY:
            raise self._error(f"key {key[:80]!r} nests arrays deeper than {_DEEPEST_ARRAY}")
        kind, count = self._number("I"), self._number("Q")
        width = struct.calcsize(_SCALARS[kind]) if kind in _SCALARS else {_STRING: 8, _ARRAY: 12}.get(kind)
        if width is None:
            raise self._error(f"key {key[:80]!r} is an array of unknown type {kind}")
        self._elements += count
        if count * width > self._left() or self._elements > _MOST_ELEMENTS:
            raise self._error(f"key {key[:80]!r} claims {count} elements, more than the file can hold")
        if kind in _SCALARS:
            self._at += count * width
            return
        for _ in range(count):
            if kind == _STRING:
                self._skip_string(key)
            else:
                self._skip_array(key, depth + 1)

    def _skip_string(self, key: str) -> None:
        length = self._number("Q")
        if length > min(_LONGEST_STRING, self._left()):
            raise self._error(f"key {key[:80]!r} has a string of {length} bytes, more than the file can hold")
        self._at += length

    def _tensor_info(self) -> _Info:
        """One tensor info, not yet checked against the file."""
        name = self._string(_LONGEST_NAME, "tensor name")
        dimensions = self._number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise self._error(
                f"tensor {name[:200]!r} has {dimensions} dimensions, at most {_MOST_DIMENSIONS}"
            )
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        return _Info(name, shape, self._at, self._number("I"), self._number("Q"))

    def _tensors(self, infos: list[_Info], data_start: int, alignment: int) -> dict[str, GGUFTensor]:
        """Check every tensor against the file and against the others."""
        tensors: dict[str, GGUFTensor] = {}
        for name, shape, type_at, number, offset in infos:
            if name in tensors:
                raise self._error(f"tensor {name[:200]!r} occurs twice")
            if number not in set(GGMLQuantizationType):
                raise self._error(f"tensor {name[:200]!r} has unknown ggml type {number}")
            kind = GGMLQuantizationType(number)
            per_block, block_bytes = GGML_QUANT_SIZES[kind]
            if any(length < 1 for length in shape) or (shape[-1] if shape else 1) % per_block:
                raise self._error(
                    f"tensor {name[:200]!r} of shape {shape} does not divide into blocks of {kind.name}"
                )
            nbytes = prod(shape) // per_block * block_bytes
            if offset % alignment:
                raise self._error(f"tensor {name[:200]!r} begins at {offset}, no multiple of {alignment}")
            if data_start + offset + nbytes > self._size:
                raise self._error(
                    f"tensor {name[:200]!r} needs {nbytes} bytes at {data_start + offset}, the file has "
                    f"{self._size}; it is truncated or its header lies, fetch it again"
                )
            meta = TensorMeta(name, shape, _dtype_name(kind), nbytes)
            tensors[name] = GGUFTensor(meta, kind, data_start + offset, type_at)
        for before, after in pairwise(sorted(tensors.values(), key=lambda tensor: tensor.begin)):
            if before.begin + before.meta.nbytes > after.begin:
                raise self._error(f"tensors {before.meta.name!r} and {after.meta.name!r} overlap")
        return tensors

    def _number(self, code: str) -> int:
        return int(self._scalar(code))

    def _scalar(self, code: str) -> int | float | bool:
        width = struct.calcsize("<" + code)
        if width > self._left():
            raise self._error("ends inside its header; it is truncated, fetch it again")
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += width
        assert isinstance(value, int | float)
        return value

    def _string(self, longest: int, what: str) -> str:
        length = self._number("Q")
        if length > min(longest, self._left()):
            raise self._error(f"{what} of {length} bytes at {self._at}; the header lies or is truncated")
        raw = self._data[self._at : self._at + length]
        self._at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._error(f"{what} at {self._at} is not UTF-8") from error

    def _left(self) -> int:
        return self._size - self._at

    def _error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {text}")


_PLAIN = {"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"} | {
    f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)
}


def _dtype_name(kind: GGMLQuantizationType) -> str:
    """torch's name of a plain type, ggml's name of a block type."""
    return _PLAIN.get(kind.name, kind.name)
