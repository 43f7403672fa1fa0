"""Records of advice: what was asked for, the strategies that meet it in order, and why the others do not.

A figure is `measured` if it comes from a run record about this model, `expected` if a published source or a
rule gives it, and then it names the source; `unknown` is said rather than guessed.
"""

from typing import Literal

from quantriage.records.types import Record

ANY = "any"  # engine: let all compete

Basis = Literal["measured", "expected", "unknown"]


class Constraints(Record, frozen=True):
    """What was asked for."""

    memory_bytes: int
    hardware: str
    engine: str  # "any" lets all compete
    context: int
    sequences: int
    priority: Literal["latency", "throughput"]
    quality: str  # near-lossless, good, smallest
    max_kl: float | None = None
    max_perplexity_ratio: float | None = None


class Figure(Record, frozen=True):
    """One property of a strategy. value: a KL or a speed ratio, None where only an order is known."""

    basis: Basis
    text: str
    value: float | None = None
    source: str = ""  # url, or path of the run


class Strategy(Record, frozen=True):
    """One way that meets the constraints."""

    rank: int
    id: str
    title: str
    engine: str
    bits: float  # stored bits per weight of the blocks' matrices
    weight_bytes: int  # in memory
    cache_bytes: int
    total_bytes: int
    quality: Figure
    speed: Figure
    commands: tuple[str, ...]
    why: str  # against the next one
    made: str = ""  # checkpoint that exists already


class Rejected(Record, frozen=True):
    """One way that does not meet them."""

    id: str
    title: str
    engine: str
    total_bytes: int | None
    reasons: tuple[str, ...]


class Advice(Record, frozen=True):
    """The answer."""

    model: str
    digest: str
    weights: int
    constraints: Constraints
    strategies: tuple[Strategy, ...]
    rejected: tuple[Rejected, ...]
    notes: tuple[str, ...]
    sentence: str
