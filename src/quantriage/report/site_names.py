"""Short names for sites in charts: what tells modules apart, without what most have in common.

`self_attn.q_proj` ... `mlp.down_proj` become `q` ... `down`, since seven columns must fit a phone. Found from
the names at hand rather than from a table of architectures: the last component, and without a trailing
word that all share. Experts of one layer are one column, because 64 would each be a pixel wide.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|\[\d+\]")


class Placed(Protocol):
    """Whatever has a place in the map: a site of a recovery, or a unit of a checkpoint under diagnosis."""

    @property
    def name(self) -> str:
        """The checkpoint's name for it."""

    @property
    def block(self) -> int:
        """Its block's number."""

    @property
    def module(self) -> str:
        """Its name inside the block."""


@dataclass(frozen=True)
class Cell:
    """Sites that share a place in the map of layers: one, or all experts of a block."""

    block: int
    column: str  # module name with expert numbers replaced by *
    sites: tuple[Placed, ...]


def column_of(site: Placed) -> str:
    """The module name, equal for all experts of a block."""
    return _NUMBER.sub("*", site.module)


def cells(sites: Iterable[Placed]) -> tuple[Cell, ...]:
    """Group sites by block and column, both in order of first appearance."""
    grouped: dict[tuple[int, str], list[Placed]] = {}
    for site in sites:
        grouped.setdefault((site.block, column_of(site)), []).append(site)
    return tuple(Cell(block, column, tuple(found)) for (block, column), found in grouped.items())


def short_columns(columns: Iterable[str]) -> dict[str, str]:
    """A short, unique label for each column."""
    names = list(dict.fromkeys(columns))
    lasts = [_norm_words(name.split(".")[-1]) for name in names]
    for made in (_without_usual_ending(lasts), lasts, names):
        shorts = [f"exp. {last}" if "*" in name else last for name, last in zip(names, made, strict=True)]
        if len(set(shorts)) == len(names):
            break
    else:
        shorts = names
    return dict(zip(names, shorts, strict=True))


def _norm_words(last: str) -> str:
    """`post_attention_layernorm` as `post attn norm`: three short lines over a narrow column."""
    if not last.endswith("norm") or "_" not in last:
        return last
    words = last.replace("layernorm", "norm").replace("attention", "attn").replace("feedforward", "ffn")
    return words.replace("_", " ")


def _without_usual_ending(lasts: list[str]) -> list[str]:
    """Without the `_proj` that most of them end in."""
    endings = Counter(last.rpartition("_")[2] for last in lasts if "_" in last)
    if not endings:
        return lasts
    usual, count = endings.most_common(1)[0]
    if count < 2 or 2 * count <= len(lasts):
        return lasts
    return [last.removesuffix(f"_{usual}") for last in lasts]


def short_sites(sites: Iterable[Placed]) -> dict[str, str]:
    """`12 · down` for each site's name; an expert keeps its number: `3 · exp. down *17`."""
    every = list(sites)
    shorts = short_columns(column_of(site) for site in every)
    labels = {}
    for site in every:
        expert = _NUMBER.search(site.module)
        ending = f" *{expert[0].strip('[]')}" if expert else ""
        labels[site.name] = f"{site.block} · {shorts[column_of(site)]}{ending}"
    return labels
