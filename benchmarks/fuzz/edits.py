"""Edits of a checkpoint as a short JSON list, which is at once the fuzzer's input and the record of a find.

A fuzzer that mutates forty kilobytes of container spends its time on bytes that no reader branches on. Here
an input names a sound checkpoint and what is wrong with the copy:

    ["gptq_v1", ["set", "config", ["quantization_config", "bits"], 3], ["delete", "header", ["m.scales"]]]

An edit that has nothing to act on any more, because another one came first, does nothing.
"""

import json
from math import prod
from typing import Any

from benchmarks.fuzz.draft import GGUF, HEADER, Draft

Edit = list[Any]
Script = list[Any]
"""The name of a sound checkpoint, then edits."""

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
_MOST_BYTES = 1 << 20  # of data in an edited file
_NESTED = "$nested"
METADATA = "__metadata__"


def apply(draft: Draft, edit: Edit) -> None:
    """Change `draft` in place."""
    try:
        _ACTIONS[edit[0]](draft, *edit[1:])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        return  # what it acts on is not there


def entry(draft: Draft, name: str) -> dict[str, Any]:
    """A tensor's entry in a safetensors header. Raises KeyError or TypeError if another edit broke it."""
    found = draft.trees[HEADER][name]
    begin, end = found["data_offsets"]
    if not 0 <= begin <= end <= len(draft.data):
        raise KeyError(name)
    return dict(found)


def text_of(draft: Draft, name: str) -> Any:
    """The JSON value that a tensor of bytes holds."""
    begin, end = entry(draft, name)["data_offsets"]
    return json.loads(bytes(draft.data[begin:end]))


def _set(draft: Draft, tree: str, path: list[Any], value: Any) -> None:
    draft.trees[tree] = _replaced(draft.trees[tree], path, lambda _: expanded(value))


def _delete(draft: Draft, tree: str, path: list[Any]) -> None:
    def without(holder: Any) -> Any:
        del holder[path[-1]]
        return holder

    draft.trees[tree] = _replaced(draft.trees[tree], path[:-1], without)


def _rename(draft: Draft, tree: str, path: list[Any], name: str) -> None:
    def renamed(holder: Any) -> Any:
        holder[name] = holder.pop(path[-1])
        return holder

    draft.trees[tree] = _replaced(draft.trees[tree], path[:-1], renamed)


def _repeat(draft: Draft, tree: str, path: list[Any], count: int) -> None:
    """A list or text so many times over, up to a length."""
    draft.trees[tree] = _replaced(draft.trees[tree], path, lambda old: (old * min(count, 10_000))[:20_000])


def _exchange(draft: Draft, tree: str, one: list[Any], other: list[Any]) -> None:
    first, second = at(draft.trees[tree], one), at(draft.trees[tree], other)
    _set(draft, tree, one, second)
    _set(draft, tree, other, first)


def _fill(draft: Draft, begin: int, length: int, pattern: str) -> None:
    """Bytes of data overwritten by a pattern."""
    content = bytes.fromhex(pattern)
    stop = min(begin + length, len(draft.data))
    if begin < 0 or begin >= stop or not content:
        raise ValueError(begin)
    draft.data[begin:stop] = (content * (-(-(stop - begin) // len(content))))[: stop - begin]


def _resize(draft: Draft, name: str, dtype: str, shape: list[int]) -> None:
    """A tensor of another dtype or shape, its old bytes repeated; the header tells the truth about it."""
    found = entry(draft, name)
    begin, end = found["data_offsets"]
    size = prod(shape) * ITEM_BYTES[dtype]
    old = bytes(draft.data[begin:end]) or b"\0"
    if size < 0 or len(draft.data) + size > _MOST_BYTES:
        raise ValueError(size)
    start = len(draft.data)
    draft.data += (old * (-(-size // len(old))))[:size]
    draft.trees[HEADER][name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}


def _text(draft: Draft, name: str, path: list[Any], value: Any) -> None:
    """A value of the JSON that a tensor of bytes holds; the tensor gets the new length."""
    changed = _replaced(text_of(draft, name), path, lambda _: expanded(value))
    _bytes(draft, name, json.dumps(changed).encode().hex())


def _bytes(draft: Draft, name: str, content: str) -> None:
    """Other bytes in place of a tensor of bytes."""
    found, raw = entry(draft, name), bytes.fromhex(content)
    start = len(draft.data)
    draft.data += raw
    offsets = [start, start + len(raw)]
    draft.trees[HEADER][name] = {"dtype": found["dtype"], "shape": [len(raw)], "data_offsets": offsets}


def _copy(draft: Draft, name: str, other: str) -> None:
    """A tensor once more, under another name and in its own bytes."""
    found = entry(draft, name)
    begin, end = found["data_offsets"]
    start = len(draft.data)
    if start + end - begin > _MOST_BYTES:
        raise ValueError(name)
    draft.data += draft.data[begin:end]
    draft.trees[HEADER][other] = found | {"data_offsets": [start, start + end - begin]}


def _raw(draft: Draft, offset: int, content: str) -> None:
    draft.raw.append((offset, bytes.fromhex(content)))


def _cut(draft: Draft, count: int) -> None:
    draft.cut = max(0, count)


_ACTIONS = {
    "set": _set,
    "delete": _delete,
    "rename": _rename,
    "repeat": _repeat,
    "exchange": _exchange,
    "fill": _fill,
    "resize": _resize,
    "text": _text,
    "bytes": _bytes,
    "copy": _copy,
    "raw": _raw,
    "cut": _cut,
}


def at(tree: Any, path: list[Any]) -> Any:
    """The value at `path`; a text in between is taken for JSON, as in the metadata of some headers."""
    for key in path:
        tree = (json.loads(tree) if isinstance(tree, str) else tree)[key]
    return tree


def _replaced(tree: Any, path: list[Any], change: Any) -> Any:
    """`tree` with `change` applied to what is at `path`, in place where that is possible."""
    if not path:
        return change(tree)
    if isinstance(tree, str):
        return json.dumps(_replaced(json.loads(tree), path, change))
    if len(path) == 1 and isinstance(tree, dict):
        tree[path[0]] = change(tree.get(path[0]))
    else:
        tree[path[0]] = _replaced(tree[path[0]], path[1:], change)
    return tree


def expanded(value: Any) -> Any:
    """`{"$nested": n}` stands for n lists in one another, which a script could not hold."""
    if not isinstance(value, dict) or _NESTED not in value:
        return value
    nested: list[Any] = []
    for _ in range(min(int(value[_NESTED]), 950)):
        nested = [nested]
    return nested


def edited(sound: Draft, edits: list[Edit]) -> Draft:
    """A copy of `sound` with all edits."""
    draft = sound.copy()
    for edit in edits:
        apply(draft, edit)
    return draft


def is_gguf(draft: Draft) -> bool:
    return GGUF in draft.trees
