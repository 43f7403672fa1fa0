"""A figure set large: what it is, its value, and what to hold it against."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """Placed by the macro of tiles.html.j2."""

    name: str
    value: str
    beside: str
