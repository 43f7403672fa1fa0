"""A checkpoint in memory with its header and config as trees of values, so that any part of it can lie.

The libraries that write these formats refuse to write nonsense; here every count, offset and name is just a
value in a tree, and what is written is what the tree says, cut to the width that its field has.
"""

import json
import struct
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIG, HEADER, GGUF, INDEX = "config", "header", "gguf", "index"
SHARD = "part.safetensors"
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass
class Draft:
    """trees: `config` and the `header` of a safetensors file, or `gguf`. data: the bytes after the header.
    With an `index` the safetensors file is the one shard of it.

    raw: edits of the finished file, (offset, bytes), an offset below zero counting from its end; cut: bytes
    to leave off its end.
    """

    trees: dict[str, Any]
    data: bytearray
    raw: list[tuple[int, bytes]] = field(default_factory=list)
    cut: int = 0

    def copy(self) -> "Draft":
        return Draft(deepcopy(self.trees), bytearray(self.data), list(self.raw), self.cut)

    def write(self, folder: Path) -> Path:
        """The checkpoint as files; what to open."""
        if GGUF in self.trees:
            path = folder / "model.gguf"
            path.write_bytes(self._finished(_gguf_bytes(self.trees[GGUF])))
            return path
        (folder / "config.json").write_text(json.dumps(self.trees[CONFIG]))
        header = json.dumps(self.trees[HEADER]).encode()
        whole = self._finished(len(header).to_bytes(8, "little") + header)
        if INDEX in self.trees:
            (folder / "model.safetensors.index.json").write_text(json.dumps(self.trees[INDEX]))
        (folder / (SHARD if INDEX in self.trees else "model.safetensors")).write_bytes(whole)
        return folder

    def _finished(self, header: bytes) -> bytes:
        whole = bytearray(header + self.data)
        for offset, content in self.raw:
            start = offset if offset >= 0 else max(len(whole) + offset, 0)
            whole[start : start + len(content)] = content
        return bytes(whole[: len(whole) - self.cut] if self.cut else whole)


def load(path: Path) -> Draft:
    """A sound checkpoint: a folder with config.json and model.safetensors, or a GGUF file."""
    if path.is_file():
        return _load_gguf(path.read_bytes())
    raw = (path / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    config = json.loads((path / "config.json").read_text())
    return Draft({CONFIG: config, HEADER: json.loads(raw[8:start])}, bytearray(raw[start:]))


class _Reading:
    """A position in a sound GGUF file."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.raw, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def text(self) -> str:
        length = self.number("Q")
        self.at += length
        return self.raw[self.at - length : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_CODES[kind])
        inner, count = self.number("I"), self.number("Q")
        return {"kind": inner, "count": None, "items": [self.value(inner) for _ in range(count)]}


def _load_gguf(raw: bytes) -> Draft:
    file = _Reading(raw)
    file.at = 4
    version, tensors, keys = file.number("I"), file.number("Q"), file.number("Q")
    pairs = []
    for _ in range(keys):
        key, kind = file.text(), file.number("I")
        pairs.append([key, kind, file.value(kind)])
    infos = []
    for _ in range(tensors):
        name, dimensions = file.text(), file.number("I")
        shape = [file.number("Q") for _ in range(dimensions)]
        infos.append([name, shape, file.number("I"), file.number("Q")])
    start = -(-file.at // 32) * 32
    tree = {"version": version, "tensor_count": None, "key_count": None, "keys": pairs, "tensors": infos}
    return Draft({GGUF: tree}, bytearray(raw[start:]))


def _gguf_bytes(tree: Any) -> bytes:
    """The header; counts that are null are the true ones, values of a wrong kind become nothing."""
    found = tree if isinstance(tree, Mapping) else {}
    keys, tensors = _items(found.get("keys")), _items(found.get("tensors"))
    parts = [b"GGUF", _packed("I", found.get("version"))]
    for key, true in (("tensor_count", len(tensors)), ("key_count", len(keys))):
        parts.append(_packed("Q", true if found.get(key) is None else found[key]))
    for pair in keys:
        key, kind, value = (*_items(pair), None, None, None)[:3]
        parts += [_text(key), _packed("I", kind), _value(kind, value)]
    for info in tensors:
        name, shape, kind, offset = (*_items(info), None, None, None, None)[:4]
        sizes = _items(shape)
        parts += [_text(name), _packed("I", len(sizes)), *(_packed("Q", size) for size in sizes)]
        parts += [_packed("I", kind), _packed("Q", offset)]
    header = b"".join(parts)
    return header + bytes(-len(header) % 32)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> bytes:
    raw = str(value).encode("utf-8", "surrogatepass")
    return len(raw).to_bytes(8, "little") + raw


def _value(kind: Any, value: Any) -> bytes:
    if kind == _STRING:
        return _text(value)
    if kind != _ARRAY or not isinstance(value, dict):
        return _packed(_CODES.get(kind, "I") if isinstance(kind, int) else "I", value)
    items = _items(value.get("items"))
    inner, count = value.get("kind"), value.get("count")
    head = _packed("I", inner) + _packed("Q", len(items) if count is None else count)
    return head + b"".join(_value(inner, item) for item in items)


def _packed(code: str, value: Any) -> bytes:
    """A number cut to the width of its field."""
    number = value if isinstance(value, int | float) else 0
    try:
        if code in "fd?":
            return struct.pack("<" + code, number)
        width = struct.calcsize("<" + code)
        return (int(number) % (1 << 8 * width)).to_bytes(width, "little")
    except (OverflowError, ValueError, struct.error):
        return bytes(struct.calcsize("<" + code))
