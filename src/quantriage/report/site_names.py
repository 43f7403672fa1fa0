"""Short names for sites in charts: what tells modules apart, without what they have in common.

`self_attn.q_proj` ... `mlp.down_proj` become `q` ... `down`, since seven columns must fit a phone. Found from
the names at hand rather than from a table of architectures: the last component, and without a trailing
word that all share. Experts of one layer are one column, because 64 would each be a pixel wide.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from quantriage.records.types import SiteInfo

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|\[\d+\]")


@dataclass(frozen=True)
class Cell:
    """Sites that share a place in the map of layers: one, or all experts of a block."""

    block: int
    column: str  # module name with expert numbers replaced by *
    sites: tuple[SiteInfo, ...]


def column_of(site: SiteInfo) -> str:
    """The module name, equal for all experts of a block."""
    return _NUMBER.sub("*", site.module)


def cells(sites: Iterable[SiteInfo]) -> tuple[Cell, ...]:
    """Group sites by block and column, both in order of first appearance."""
    grouped: dict[tuple[int, str], list[SiteInfo]] = {}
    for site in sites:
        grouped.setdefault((site.block, column_of(site)), []).append(site)
    return tuple(Cell(block, column, tuple(found)) for (block, column), found in grouped.items())


def short_columns(columns: Iterable[str]) -> dict[str, str]:
    """A short, unique label for each column."""
    names = list(dict.fromkeys(columns))
    lasts = [name.split(".")[-1] for name in names]
    endings = {last.rpartition("_")[2] for last in lasts}
    if len(names) > 1 and len(endings) == 1 and all("_" in last for last in lasts):
        lasts = [last.rpartition("_")[0] for last in lasts]
    shorts = [f"exp. {last}" if "*" in name else last for name, last in zip(names, lasts, strict=True)]
    unique = len(set(shorts)) == len(names)
    return {name: (short if unique else name) for name, short in zip(names, shorts, strict=True)}


def short_sites(sites: Iterable[SiteInfo]) -> dict[str, str]:
    """`12 · down` for each site's name; an expert keeps its number: `3 · exp. down *17`."""
    every = list(sites)
    shorts = short_columns(column_of(site) for site in every)
    labels = {}
    for site in every:
        expert = _NUMBER.search(site.module)
        ending = f" *{expert[0].strip('[]')}" if expert else ""
        labels[site.name] = f"{site.block} · {shorts[column_of(site)]}{ending}"
    return labels
