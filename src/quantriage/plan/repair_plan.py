"""Which culprit of a candidate gets which way of storing it, within a budget of added bytes.

To round a weight again as it is stored costs nothing, so it is done wherever that predicts less loss than
what is there. A larger way has to earn its bytes: it counts only if it takes away a noticeable part of the
whole loss, and of those that do, the knapsack chooses. Weights that an engine joins get a larger way together
or not at all; rounding them again needs no such care.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from quantriage.numerics.schemes import PerGroup, Scheme
from quantriage.plan.knapsack import Knapsack, solve

WORTH = 0.02
"""Share of the total predicted loss that a larger way must take away."""
UNBOUNDED = 1e6
"""Stands for the loss of values that are not finite."""


@dataclass(frozen=True)
class Larger:
    """A way that takes more bytes, and the KL predicted for it."""

    bytes_added: int
    kl: float


@dataclass(frozen=True)
class Culprit:
    """One weight. KL is predicted, in nats per token.

    kept: as stored now. again: rounded again in its own way; None if that cannot be or is not asked for.
    larger: by label.
    """

    name: str
    kept: float
    again: float | None
    larger: Mapping[str, Larger] = field(default_factory=dict)

    @property
    def base(self) -> float:
        """The least KL without a byte more."""
        return self.kept if self.again is None else min(self.kept, self.again)


KEEP, AGAIN = "", "again"


def choose(
    groups: Sequence[Sequence[Culprit]], capacity: int, total: float, worth: float = WORTH
) -> dict[str, str]:
    """For each weight KEEP, AGAIN or the label of a larger way.

    groups: weights that must be stored larger together. capacity: bytes that may be added. total: predicted
    KL of the whole candidate as it is, of which `worth` is the least gain of a larger way.
    """
    options = [_options(members, min(total, UNBOUNDED) * worth) for members in groups]
    if not groups:
        return {}
    columns = [(unit, *option) for unit, found in enumerate(options) for option in found]
    problem = Knapsack(
        unit=np.array([unit for unit, *_ in columns], dtype=np.int64),
        weight=np.array([added for _, _, added, _ in columns], dtype=np.int64),
        cost=np.array([kl for _, _, _, kl in columns], dtype=np.float64),
        capacity=capacity,
    )
    chosen = solve(problem)
    assert chosen is not None  # every group has an option of no bytes
    found: dict[str, str] = {}
    for members, column in zip(groups, chosen.tolist(), strict=True):
        label = columns[column][1]
        for member in members:
            stays = member.again is None or member.again >= member.kept
            found[member.name] = label or (KEEP if stays else AGAIN)
    return found


def _options(members: Sequence[Culprit], least_gain: float) -> list[tuple[str, int, float]]:
    """(label, bytes added, KL) of a group: nothing added first."""
    base = sum(min(member.base, UNBOUNDED) for member in members)
    found = [(KEEP, 0, base)]
    for label in members[0].larger:
        if all(label in member.larger for member in members):
            added = sum(member.larger[label].bytes_added for member in members)
            kl = sum(member.larger[label].kl for member in members)
            if base - kl >= least_gain:
                found.append((label, max(added, 0), kl))
    return found


def larger_schemes(own: Scheme | None, menu: Sequence[Scheme]) -> tuple[Scheme, ...]:
    """Schemes of a menu worth a try above one's own: smaller groups, or more bits in the same groups.

    A change of symmetry is left to more bits, where a menu often has only one kind. Without an own scheme
    there is none.
    """
    if own is None:
        return ()
    return tuple(s for s in menu if _is_larger(own, s))


def _is_larger(own: Scheme, other: Scheme) -> bool:
    if other.grid.bits != own.grid.bits:
        return other.grid.bits > own.grid.bits and other.granularity == own.granularity
    finer = isinstance(other.granularity, PerGroup) and (
        not isinstance(own.granularity, PerGroup) or other.granularity.size < own.granularity.size
    )
    return finer and other.grid.symmetric == own.grid.symmetric
