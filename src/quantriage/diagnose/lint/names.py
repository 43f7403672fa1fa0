"""What tensor names say by themselves: block, module, expert, and which modules engines fuse.

Used where no model map is at hand, which is when tensors are missing and the map is wanted most. The block is
the number that stands at the same place in most names ("model.layers.3.mlp.up_proj": 3), found by
counting; no architecture is listed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

FUSED_SUFFIXES: tuple[tuple[str, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
)
"""Last name parts that engines store as one matrix."""

_MOST_PATTERN = 200  # a longer expression in a config is not run against every name


@dataclass(frozen=True)
class BlockName:
    """A name inside the stack of blocks: "model.layers" "." 3 "." "mlp.up_proj"."""

    stack: str
    block: int
    rest: str

    @property
    def kind(self) -> str:
        """The same for all siblings in other blocks and for all experts of a block."""
        return ".".join("*" if part.isdigit() else part for part in self.rest.split("."))

    @property
    def expert(self) -> int | None:
        """The number inside the block, if there is one."""
        numbers = [int(part) for part in self.rest.split(".") if part.isdigit()]
        return numbers[0] if numbers else None


def block_stack(names: Iterable[str]) -> str | None:
    """The prefix in front of block numbers: the one that most names share. None if no name has a number."""
    counts: Counter[str] = Counter()
    for name in names:
        found = re.match(r"(.*?)\.(\d{1,5})\.", name)
        if found is not None:
            counts[found[1]] += 1
    return counts.most_common(1)[0][0] if counts else None


def in_blocks(names: Iterable[str]) -> dict[str, BlockName]:
    """Names of the stack, parsed; others are left out."""
    listed = list(names)
    stack = block_stack(listed)
    if stack is None:
        return {}
    pattern = re.compile(re.escape(stack) + r"\.(\d{1,5})\.(.+)")
    found = {name: pattern.fullmatch(name) for name in listed}
    return {name: BlockName(stack, int(hit[1]), hit[2]) for name, hit in found.items() if hit is not None}


def fused_by_suffix(modules: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Groups of modules that engines fuse, by the ends of their names; at least two each."""
    groups: dict[tuple[str, int], list[str]] = {}
    for module in modules:
        parent, _, last = module.rpartition(".")
        for number, suffixes in enumerate(FUSED_SUFFIXES):
            if last in suffixes:
                groups.setdefault((parent, number), []).append(module)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def declared(module: str, quantization: Mapping[str, object]) -> bool:
    """Whether the quantization config mentions this module by name, part of a name, or expression.

    Generous on purpose: a module that somebody wrote down was meant to be an exception.
    """
    return any(_mentions(text, module) for text in _strings(quantization, 0))


def _strings(value: object, depth: int) -> Sequence[str]:
    """Keys below the first level and strings in lists: the places where modules are named."""
    if depth > 6:
        return ()
    if isinstance(value, Mapping):
        keys = [key for key in value if isinstance(key, str)] if depth else []
        return [*keys, *(text for inner in value.values() for text in _strings(inner, depth + 1))]
    if isinstance(value, list):
        return [
            text
            for inner in value
            for text in ([inner] if isinstance(inner, str) else _strings(inner, depth + 1))
        ]
    return ()


def _mentions(text: str, module: str) -> bool:
    if text in ("Linear", "Embedding"):
        return False
    if module == text or module.endswith("." + text) or f".{text}." in f".{module}.":
        return True
    expression = re.sub(r"^(re:|[-+]:)", "", text)
    plain = expression == text and not re.search(r"[*\\^$|(]", text)
    nested = re.search(r"[*+}]\)*[*+{]", expression)  # can take exponential time
    if plain or nested or len(expression) > _MOST_PATTERN:
        return False
    try:
        return re.match(expression, module) is not None
    except re.error:
        return False
