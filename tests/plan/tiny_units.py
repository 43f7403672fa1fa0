"""Sites and units small enough to enumerate."""

from quantriage.numerics.schemes import Scheme
from quantriage.plan.units import Option, Unit
from quantriage.records.types import SiteInfo

SHAPES = {"q": (64, 64), "k": (32, 64), "o": (64, 64), "down": (64, 96)}


def site(name: str, shape: tuple[int, int], block: int = 0, fused: tuple[str, ...] = ()) -> SiteInfo:
    return SiteInfo(
        name=name, block=block, module=name.split(".")[-1], category="mlp", shape=shape, fused_with=fused
    )


def tiny_sites(blocks: int = 3) -> tuple[SiteInfo, ...]:
    """Blocks of q and k (fused, named from one side only), o, and down (width 96)."""
    return tuple(
        site(f"layers.{b}.{kind}", shape, b, (f"layers.{b}.k",) if kind == "q" else ())
        for b in range(blocks)
        for kind, shape in SHAPES.items()
    )


def tiny_kl(sites: tuple[SiteInfo, ...], schemes: tuple[Scheme, ...]) -> dict[tuple[str, Scheme], float]:
    """Deterministic, falling with stored bits, different for each site."""
    return {
        (s.name, scheme): (1 + i % 5) * 4.0**-scheme.grid.bits * (1.0 if scheme.grid.symmetric else 0.8)
        for i, s in enumerate(sites)
        for scheme in schemes
    }


def free_unit(index: int, pairs: list[tuple[int, float]]) -> Unit:
    """A unit with invented options; schemes only tell them apart."""
    schemes = [Scheme.parse(f"w{2 + i % 7}{'sa'[i // 7]}-channel") for i in range(len(pairs))]
    options = tuple(Option(s, size, kl) for s, (size, kl) in zip(schemes, pairs, strict=True))
    return Unit((site(f"s{index}", (8, 8), index),), options)
