"""The rules of `advise` as validated data: sources, hardware, engines, floors of quality, strategies, speed.

They lie in a YAML file, so that a statement and its source can be read and corrected without reading code. An
unknown key, a reference to a source that is not listed, or a web source without https is an error when read.
"""

from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

from quantriage.errors import QuantriageError
from quantriage.numerics.schemes import Scheme
from quantriage.records.types import Record

Priority = Literal["latency", "throughput"]
Tier = Literal["near-lossless", "good", "lossy"]
FILE = "advice_rules.yaml"


class Source(Record, frozen=True):
    """Where a statement comes from and what it says there."""

    url: str
    says: str


class Support(Record, frozen=True):
    """An engine runs a family of formats on these kinds of hardware. held_in_full: decompressed in memory."""

    engine: str
    family: str
    hardware: tuple[str, ...]
    source: str
    held_in_full: bool = False


class SmallModel(Record, frozen=True):
    """Families whose published quality says nothing of models with fewer weights."""

    weights: int
    families: tuple[str, ...]
    source: str


class Floor(Record, frozen=True):
    """The most a strategy may lose, where it is measured, and the tiers that are let through, where not."""

    tiers: tuple[Tier, ...]
    kl: float | None = None
    perplexity_ratio: float | None = None


class WeightRule(Record, frozen=True):
    """How the blocks' matrices are stored: bits a weight, a scheme, or GGUF types of body and outer ones."""

    bits: float | None = None
    scheme: str | None = None
    type: str | None = None
    embedding: str = ""
    head: str = ""


class Published(Record, frozen=True):
    """A figure from a source, for the model the source measured."""

    kl: float
    model: str
    of: str


class Quality(Record, frozen=True):
    """order: 0 loses least. Either a tier that the source's words support, or a figure, or neither."""

    order: int
    source: str
    tier: Tier | None = None
    published: Published | None = None


class StrategyRule(Record, frozen=True):
    """One way to store and run a model."""

    id: str
    title: str
    family: str
    weights: WeightRule
    engines: tuple[str, ...]
    quality: Quality
    layouts: tuple[str, ...]  # of checkpoints that a measurement may be about
    commands: tuple[str, ...]


class SpeedRule(Record, frozen=True, rename={"speed_class": "class"}):
    """Speed against the unquantized model in the same engine, as a class; empty fields match all."""

    engine: str
    speed_class: Literal[-1, 0, 1, 2]
    why: str
    ratio: float | None = None  # where the source gives one, for the model it measured
    family: str = ""
    strategies: tuple[str, ...] = ()
    hardware: tuple[str, ...] = ()
    priority: Priority | None = None
    source: str = ""

    def matches(self, strategy: StrategyRule, engine: str, hardware: str, priority: Priority) -> bool:
        """Whether the rule speaks of this strategy there."""
        return (
            self.engine == engine
            and self.family in ("", strategy.family)
            and (not self.strategies or strategy.id in self.strategies)
            and (not self.hardware or hardware in self.hardware)
            and self.priority in (None, priority)
        )


class Rules(Record, frozen=True):
    """The whole file."""

    sources: dict[str, Source]
    hardware: dict[str, str]
    support: tuple[Support, ...]
    small_model: SmallModel
    floors: dict[str, Floor]
    fallback: dict[str, str]
    strategies: tuple[StrategyRule, ...]
    speed: tuple[SpeedRule, ...]

    @property
    def engines(self) -> tuple[str, ...]:
        """Engines by the order of the file."""
        return tuple(dict.fromkeys(one.engine for one in self.support))

    def supports(self, engine: str, family: str, hardware: str) -> Support | None:
        """The statement that lets this run, None if there is none."""
        found = (s for s in self.support if s.engine == engine and s.family == family)
        return next((s for s in found if hardware in s.hardware), None)


@cache
def advice_rules() -> Rules:
    """The rules that come with the package."""
    return read_rules(files("quantriage.plan").joinpath(FILE).read_bytes())


def read_rules(data: bytes) -> Rules:
    """Rules out of YAML. Raises QuantriageError for anything that is not as the schema says."""
    try:
        rules = msgspec.yaml.decode(data, type=Rules)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise QuantriageError(f"{FILE}: {error}") from error
    for name, source in rules.sources.items():
        if not source.url.startswith(("https://", "docs/")):
            raise QuantriageError(f"{FILE}: source {name!r} has the address {source.url!r}, expected https")
    for where, source_name in _cited(rules):
        if source_name not in rules.sources:
            raise QuantriageError(f"{FILE}: {where} cites {source_name!r}, which is no source listed")
    for where, kinds in _hardware_named(rules):
        unknown = set(kinds) - set(rules.hardware)
        if unknown:
            raise QuantriageError(f"{FILE}: {where} names hardware {', '.join(sorted(unknown))}, not listed")
    for strategy in rules.strategies:
        _check_weights(strategy)
    return rules


def _cited(rules: Rules) -> list[tuple[str, str]]:
    """Every place that needs a source, with the source it gives."""
    return [
        *((f"support of {s.family} in {s.engine}", s.source) for s in rules.support),
        *((f"strategy {s.id}", s.quality.source) for s in rules.strategies),
        *((f"speed in {s.engine}", s.source) for s in rules.speed if s.speed_class != 0 or s.source),
        ("small_model", rules.small_model.source),
    ]


def _hardware_named(rules: Rules) -> list[tuple[str, tuple[str, ...]]]:
    return [(f"support in {s.engine}", s.hardware) for s in rules.support] + [
        (f"speed in {s.engine}", s.hardware) for s in rules.speed
    ]


def _check_weights(strategy: StrategyRule) -> None:
    """Exactly one way of storing, and a scheme that can be parsed."""
    weights = strategy.weights
    if sum(given is not None for given in (weights.bits, weights.scheme, weights.type)) != 1:
        raise QuantriageError(f"{FILE}: strategy {strategy.id}: give one of bits, scheme, type")
    if weights.scheme is not None:
        Scheme.parse(weights.scheme)
    if weights.type is not None and not (weights.embedding and weights.head):
        raise QuantriageError(f"{FILE}: strategy {strategy.id}: a type needs those of embedding and head")
