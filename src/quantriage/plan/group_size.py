"""A group size that does not divide a layer's width: resolved by rule and said, never picked silently.

The rule is the largest allowed smaller size that divides, so precision is never lost against what was asked;
of GGUF types, whose blocks are a fixed size, the smallest of no fewer bytes.
Padding the width was rejected: stock kernels do not load padded groups.
"""

from collections.abc import Iterable
from dataclasses import replace

from quantriage.errors import BudgetError
from quantriage.numerics.block_types import replacement
from quantriage.numerics.schemes import InBlocks, PerGroup, Scheme
from quantriage.records.types import Finding


def resolve(scheme: Scheme, in_features: int, allowed: Iterable[int]) -> tuple[Scheme, Finding | None]:
    """The scheme that a layer of `in_features` inputs gets when `scheme` is asked, and a Finding if changed.

    allowed: group sizes of the target. Raises BudgetError listing the choices if no smaller one divides.
    """
    match scheme.granularity:
        case PerGroup(asked):
            pass
        case InBlocks(kind):
            return _resolve_type(scheme, kind, in_features)
        case _:
            return scheme, None
    if in_features % asked == 0:
        return scheme, None
    dividing = sorted(size for size in set(allowed) if in_features % size == 0)
    smaller = [size for size in dividing if size < asked]
    if not smaller:
        choices = f"group size {', '.join(map(str, dividing))} or per channel" if dividing else "per channel"
        raise BudgetError(
            f"in_features {in_features} is not a multiple of group size {asked} and no smaller size that the "
            f"target takes divides it; choose {choices}"
        )
    used = replace(scheme, granularity=PerGroup(smaller[-1]))
    text = f"layer width {in_features} is not a multiple of group size {asked}: uses {smaller[-1]} ({used})"
    return used, Finding(severity="info", code="group-size-resolved", text=text)


def _resolve_type(scheme: Scheme, kind: str, in_features: int) -> tuple[Scheme, Finding | None]:
    used = replacement(kind, in_features)
    if used == kind or in_features % scheme.block.width == 0:
        return scheme, None
    if used is None:
        raise BudgetError(
            f"in_features {in_features} is not a multiple of {scheme.block.width}, the weights in a block of "
            f"{kind}, and no other GGUF type of as many bytes divides it"
        )
    width = scheme.block.width
    text = f"layer width {in_features} is not a multiple of {width}, which {kind} needs: uses {used}"
    return Scheme.named(used), Finding(severity="info", code="type-resolved", text=text)
