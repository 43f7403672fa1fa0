"""New edits at random, guided by what the checkpoint holds: keys, names, sizes and dtypes, not bytes.

Values come from three places: numbers at which readers are known to break, neighbours of the number that
stands there, and words and values that occur elsewhere in this or another checkpoint.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from benchmarks.fuzz.draft import CONFIG, GGUF, HEADER, INDEX, Draft
from benchmarks.fuzz.edits import ITEM_BYTES, METADATA, Edit, Script, edited, entry, is_gguf, text_of

_MOST_EDITS = 12
_NUMBERS = (
    *(0, 1, -1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 100, 127, 128, 255, 256),
    *(
        257,
        511,
        512,
        1000,
        4096,
        65535,
        65536,
        10**6,
        10**7,
        2**24,
        2**31 - 1,
        2**31,
        2**32 - 1,
        2**32,
        -(2**31),
    ),
    *(2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**30),
)
_ODD: tuple[Any, ...] = (
    *(0.0, -0.0, 0.5, 1.5, -1.0, 1e-45, 1e308, float("inf"), float("-inf"), float("nan")),
    *(True, False, None, "", "0", "a" * 5000, "\ud800", "\0", "re:(", "re:.*", "é", "x.", ".x", "."),
    *("../..", "../part.safetensors", "pytorch_model.bin", "a" * 300 + ".safetensors", "re:.*.*.*.*.*.*x"),
    *([], {}, [[]], [None], [0], [1, 1], [-1, -1], [2**31, 2**31], {"": None}, {"a": {}}, [""], [True, 2]),
    *({"$nested": depth} for depth in (40, 300, 900)),
)
_PATTERNS = (
    "00",
    "ff",
    "01",
    "80",
    "7f",
    "7fc00000",
    "0000c07f",
    "0000807f",
    "007c",
    "00ff",
    "feffffff",
    "0a",
)
_LENGTHS = (1, 2, 4, 8, 16, 64, 1 << 20)


class Vocabulary:
    """Keys, words and scalars of all sound checkpoints."""

    def __init__(self, drafts: Sequence[Draft]) -> None:
        keys: dict[str, None] = {}
        words: dict[str, None] = {}
        for draft in drafts:
            for path, value in (pair for tree in draft.trees.values() for pair in nodes(tree)):
                if path and isinstance(path[-1], str):
                    keys[path[-1]] = None
                if isinstance(value, str) and len(value) < 200:
                    words[value] = None
        self.keys, self.words = tuple(keys), tuple(words)


def nodes(tree: Any, path: tuple[Any, ...] = (), depth: int = 0) -> Iterator[tuple[list[Any], Any]]:
    """Every place of a tree with its value; texts that are JSON objects are entered."""
    yield list(path), tree
    if depth > 12:
        return
    if isinstance(tree, str) and tree.startswith("{"):
        try:
            tree = json.loads(tree)
        except ValueError:
            return
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from nodes(value, (*path, key), depth + 1)
    elif isinstance(tree, list):
        for number, value in enumerate(tree[:64]):
            yield from nodes(value, (*path, number), depth + 1)


def mutated(script: Script, drafts: Mapping[str, Draft], vocabulary: Vocabulary, random: Random) -> Script:
    """The script with one to three edits more, fewer or different."""
    name, *edits = script
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        chance = random.random()
        if edits and (chance < 0.12 or len(edits) >= _MOST_EDITS):
            edits.pop(random.randrange(len(edits)))
        elif edits and chance < 0.3:
            number = random.randrange(len(edits))
            edits[number] = _varied(edits[number], vocabulary, random)
        elif chance < 0.34:
            name = random.choice(list(drafts))
        else:
            edits.append(new_edit(edited(drafts[name], edits), vocabulary, random))
    return [name, *edits]


def crossed(one: Script, other: Script, random: Random) -> Script:
    """Edits of both, on the first one's checkpoint."""
    kept = [edit for edit in (*one[1:], *other[1:]) if random.random() < 0.7]
    return [one[0], *kept[:_MOST_EDITS]]


def new_edit(draft: Draft, vocabulary: Vocabulary, random: Random) -> Edit:
    """One edit of any kind that this checkpoint can have."""
    chance = random.random()
    if chance < 0.04:
        return ["raw", random.randrange(-2000, 4000), random.randbytes(random.choice((1, 1, 4, 8))).hex()]
    if chance < 0.05:
        return ["cut", random.choice((1, 7, 100, 5000, 50_000))]
    if chance < 0.2:
        return _data_edit(draft, random)
    if is_gguf(draft):
        return _tree_edit(draft, GGUF, vocabulary, random)
    if INDEX in draft.trees and chance < 0.5:
        return _tree_edit(draft, INDEX, vocabulary, random)
    if chance < 0.5:
        return _tensor_edit(draft, vocabulary, random)
    return _tree_edit(draft, CONFIG if chance < 0.85 else HEADER, vocabulary, random)


def _varied(edit: Edit, vocabulary: Vocabulary, random: Random) -> Edit:
    """The same place, another value."""
    if edit[0] in ("set", "text"):
        return [*edit[:-1], _value(edit[-1], vocabulary, random)]
    if edit[0] == "resize":
        return [*edit[:2], edit[2], _shape(edit[3], random)]
    if edit[0] == "fill":
        return [*edit[:-1], _pattern(random)]
    return edit


def _tree_edit(draft: Draft, tree: str, vocabulary: Vocabulary, random: Random) -> Edit:
    places = list(nodes(draft.trees[tree]))
    if tree == CONFIG and random.random() < 0.75:  # the rest of a config is transformers' business
        places = [place for place in places if place[0][:1] == ["quantization_config"]] or places
    path, value = random.choice(places)
    chance = random.random()
    if not path or chance < 0.6:
        if isinstance(value, dict) and random.random() < 0.7:
            key = random.choice(vocabulary.keys)
            return ["set", tree, [*path, key], _value(None, vocabulary, random)]
        return ["set", tree, path, _value(value, vocabulary, random)]
    if chance < 0.75:
        return ["delete", tree, path]
    if chance < 0.83 and isinstance(path[-1], str):
        return ["rename", tree, path, random.choice(vocabulary.keys)]
    if chance < 0.88 and isinstance(value, str | list):
        return ["repeat", tree, path, random.choice((0, 2, 3, 100, 10_000))]
    return ["exchange", tree, path, random.choice(places)[0]]


def _tensor_edit(draft: Draft, vocabulary: Vocabulary, random: Random) -> Edit:
    """An edit after which the header still tells the truth about a tensor's bytes."""
    header = draft.trees[HEADER]
    names = [name for name in header if name != METADATA] if isinstance(header, dict) else []
    if not names:
        return _tree_edit(draft, HEADER, vocabulary, random)
    name = random.choice(names)
    try:
        found = entry(draft, name)
    except (KeyError, TypeError, ValueError):
        return ["delete", HEADER, [name]]
    chance = random.random()
    if chance < 0.15 and "quant_state" in name:
        return _state_edit(draft, name, vocabulary, random)
    if chance < 0.2:
        return ["delete", HEADER, [name]]
    if chance < 0.3:
        return ["rename", HEADER, [name], _sibling(name, names, vocabulary, random)]
    if chance < 0.4:
        return ["copy", name, _sibling(name, names, vocabulary, random)]
    if chance < 0.5:
        return ["exchange", HEADER, [name], [random.choice(names)]]
    dtype = random.choice(tuple(ITEM_BYTES)) if random.random() < 0.5 else found["dtype"]
    shape = found["shape"] if random.random() < 0.4 else _shape(found["shape"], random)
    return ["resize", name, dtype, shape]


def _state_edit(draft: Draft, name: str, vocabulary: Vocabulary, random: Random) -> Edit:
    try:
        state = text_of(draft, name)
    except (KeyError, TypeError, ValueError):
        return ["bytes", name, random.randbytes(random.randrange(40)).hex()]
    if random.random() < 0.1:
        return ["bytes", name, random.randbytes(random.randrange(40)).hex()]
    path, value = random.choice(list(nodes(state)))
    return ["text", name, path, _value(value, vocabulary, random)]


def _sibling(name: str, names: Sequence[str], vocabulary: Vocabulary, random: Random) -> str:
    """Another part of the same module, the same part of another, or any name."""
    module, _, part = name.rpartition(".")
    other_module, _, other_part = random.choice(names).rpartition(".")
    odd = random.choice(
        ("", ".", f".{part}", f"{module}.", "a" * 2000, "\ud800", random.choice(vocabulary.keys))
    )
    return random.choice(
        (f"{module}.{other_part}", f"{other_module}.{part}", f"{module}.{part}.{other_part}", odd)
    )


def _shape(shape: Any, random: Random) -> list[int]:
    """A shape near another one, of few enough elements."""
    sizes = [size for size in shape if isinstance(size, int)] if isinstance(shape, list) else []
    chance = random.random()
    if chance < 0.2:
        return sizes[::-1]
    if chance < 0.35 or not sizes:
        return [*sizes, 1] if random.random() < 0.5 else [1, *sizes]
    if chance < 0.45:
        return sizes[:-1]
    if chance < 0.5:
        return random.choice(([], [0], [0, 0], [1], [1, 1], [2], [2, 2], [4], [1, 1, 1]))
    number = random.randrange(len(sizes))
    near = (sizes[number] + 1, sizes[number] - 1, 2 * sizes[number], sizes[number] // 2, 0, 1, 2, 3, 8, 33)
    return [*sizes[:number], max(0, random.choice(near)), *sizes[number + 1 :]]


def _data_edit(draft: Draft, random: Random) -> Edit:
    """A pattern over a part of the data, mostly from where a tensor begins."""
    begins = [0]
    if is_gguf(draft):
        infos = draft.trees[GGUF].get("tensors") if isinstance(draft.trees[GGUF], dict) else None
        begins += [info[3] for info in infos or () if isinstance(info, list) and len(info) > 3]
    elif isinstance(draft.trees[HEADER], dict):
        offsets = [e.get("data_offsets") for e in draft.trees[HEADER].values() if isinstance(e, dict)]
        begins += [pair[0] for pair in offsets if isinstance(pair, list) and pair]
    begin = random.choice([b for b in begins if isinstance(b, int) and 0 <= b <= len(draft.data)] or [0])
    if random.random() < 0.3:
        begin += random.randrange(64)
    return ["fill", begin, random.choice(_LENGTHS), _pattern(random)]


def _pattern(random: Random) -> str:
    return random.choice(_PATTERNS) if random.random() < 0.7 else random.randbytes(8).hex()


def _value(old: Any, vocabulary: Vocabulary, random: Random) -> Any:
    """Another value for `old`, more often of its own kind than not."""
    chance = random.random()
    if type(old) is int and chance < 0.6:
        near = (old + 1, old - 1, old * 2, old // 2, -old, old + 32, float(old), str(old))
        return random.choice((*near, *random.sample(_NUMBERS, 4)))
    if isinstance(old, str) and chance < 0.5:
        return random.choice(vocabulary.words)
    if isinstance(old, list) and chance < 0.4 and len(old) < 200:
        return random.choice((old[:-1], old + old, old[::-1], [*old, random.choice(_NUMBERS)], old[1:]))
    if isinstance(old, bool) and chance < 0.5:
        return not old
    if chance < 0.75:
        return random.choice(_NUMBERS)
    return random.choice(_ODD) if random.random() < 0.7 else random.choice(vocabulary.words)
