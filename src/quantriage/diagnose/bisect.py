"""The smallest sets of units that make a candidate bad, by asking about few hybrids.

The question is always the same: is the reference still bad when it takes exactly these units from the
candidate? One round finds one minimal set. It supposes first that more units never make a bad hybrid good:
then a binary search for the shortest bad prefix yields one member in log2(n) questions, and the next in as
many (minimal sets over monotone predicates; Marques-Silva, Janota and Belov, CAV 2013). What it finds is
then checked without the supposition: the set itself must be bad, and must not be once any one unit is left
out. Where that fails, delta debugging (Zeller and Hildebrandt, IEEE TSE 28(2), 2002) takes over, whose result
is 1-minimal for any criterion. A plain halving was rejected: it loses a pair that is bad only together.

A minimal set explains that the candidate is bad, not all that is bad about it: of three units each of which
suffices, it names one. So what was found is restored and the rest is searched again, until the rest is good.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

Taken = frozenset[str]
Ask = Callable[[Taken], bool | None]
"""Units taken from the candidate -> bad, not bad, or None where the question has no answer."""

_MOVED_SPLITS = 3  # other places tried where a split had no answer
_ENOUGH = 64  # questions that are always allowed before the search for one more set is given up


class Criterion(Protocol):
    """What "bad" means. `measure` is costly and asked once for each set; `bad` judges its figure."""

    def begin(self, units: Taken, value: float) -> bool:
        """Prepare to search in `units`, whose figure is `value`; False if they are not bad."""
        ...

    def measure(self, taken: Taken) -> float:
        """The figure of the hybrid that takes these units; may be infinite."""
        ...

    def bad(self, taken: Taken, value: float) -> bool | None:
        """The verdict on a figure; None if there is none."""
        ...


@dataclass(frozen=True)
class Step:
    """One question that was really put, in the order of asking, with the verdict when it was asked."""

    taken: Taken
    value: float
    bad: bool | None


@dataclass(frozen=True)
class Found:
    """Minimal sets in the order found, and every question put. value_without: all units but the culprits.

    complete: what remains without the culprits is good.
    """

    groups: tuple[tuple[str, ...], ...]
    steps: tuple[Step, ...]
    value_all: float
    value_culprits: float | None
    value_without: float | None
    complete: bool

    @property
    def culprits(self) -> tuple[str, ...]:
        """All units found."""
        return tuple(unit for group in self.groups for unit in group)


class _Answers:
    """Figures by set: no hybrid is measured twice."""

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self.values: dict[Taken, float] = {}
        self.steps: list[Step] = []

    def value(self, taken: Taken) -> float:
        if taken not in self.values:
            value = self.criterion.measure(taken)
            self.values[taken] = value
            self.steps.append(Step(taken, value, self.criterion.bad(taken, value)))
        return self.values[taken]

    def ask(self, taken: Taken) -> bool | None:
        """The verdict, measured if it has to be. The reference itself is good by definition."""
        return self.criterion.bad(taken, self.value(taken)) if taken else False

    def infer(self, taken: Taken) -> bool | None:
        """As `ask`, but inside a good set all is good and around a bad one all is bad."""
        for known, value in self.values.items():
            if taken <= known and self.criterion.bad(known, value) is False:
                return False
            if known <= taken and self.criterion.bad(known, value) is True:
                return True
        return self.ask(taken)


def bisect(units: Sequence[str], criterion: Criterion, weights: Mapping[str, float] | None = None) -> Found:
    """Every minimal set of `units` that is bad, until the rest is good.

    weights: expected share of each unit in what is bad; units are then searched in falling order, and splits
    halve weight instead of number. It may be wrong: half of all weight is shared evenly. Once more questions
    were put than there are units (and _ENOUGH), no further set is looked for.
    """
    answers = _Answers(criterion)
    rest = list(units) if weights is None else sorted(units, key=lambda u: -weights.get(u, 0.0))
    groups: list[tuple[str, ...]] = []
    value_all = answers.value(frozenset(units))
    complete = False
    while rest:
        everything = frozenset(rest)
        if not criterion.begin(everything, answers.value(everything)):
            complete = True
            break
        if len(answers.steps) > max(len(units), _ENOUGH):
            break
        group = minimal_set(rest, answers.ask, answers.infer, weights)
        groups.append(group)
        rest = [unit for unit in rest if unit not in group]
    culprits = frozenset(unit for group in groups for unit in group)
    return Found(
        groups=tuple(groups),
        value_culprits=answers.value(culprits) if culprits else None,
        value_without=answers.value(frozenset(rest)) if culprits and rest else None,
        value_all=value_all,
        steps=tuple(answers.steps),
        complete=complete or not rest,
    )


def minimal_set(
    units: Sequence[str], ask: Ask, infer: Ask | None = None, weights: Mapping[str, float] | None = None
) -> tuple[str, ...]:
    """A subset that is bad and is not once any one of it is left out; `units` as a whole must be bad.

    infer: may answer from what is known under monotony; `ask` has to be right. No answer counts as not bad.
    """
    found = _by_prefixes(units, ask, infer or ask, weights)
    if found is None:
        return ddmin(units, ask)
    if len(found) > 1 and any(ask(frozenset(found) - {unit}) for unit in found):
        return ddmin(found, ask)
    return tuple(found)


def _by_prefixes(
    units: Sequence[str], ask: Ask, infer: Ask, weights: Mapping[str, float] | None
) -> list[str] | None:
    """One member after another, each by the shortest prefix that is bad with those found; None: not so."""
    found: list[str] = []
    limit = len(units)  # found and units[:limit] are bad together
    while not found or ask(frozenset(found)) is not True:
        low, high = 0, limit
        if limit == 0:
            return None
        while high - low > 1:
            moved = _answered_split(units, low, high, found, infer, weights)
            if moved is None:
                return None
            middle, is_bad = moved
            low, high = (low, middle) if is_bad else (middle, high)
        found.append(units[high - 1])
        limit = high - 1
    return found


def _answered_split(
    units: Sequence[str],
    low: int,
    high: int,
    found: Sequence[str],
    infer: Ask,
    weights: Mapping[str, float] | None,
) -> tuple[int, bool] | None:
    """A place between low and high, and whether the prefix up to it is bad; None: no answer."""
    middle = _split(units, low, high, weights)
    places = sorted(range(low + 1, high), key=lambda place: abs(place - middle))
    for place in places[: 1 + _MOVED_SPLITS]:
        is_bad = infer(frozenset(units[:place]) | frozenset(found))
        if is_bad is not None:
            return place, is_bad
    return None


def _split(units: Sequence[str], low: int, high: int, weights: Mapping[str, float] | None) -> int:
    """The place strictly between low and high that halves the weight, half of which is shared evenly."""
    if weights is None:
        return (low + high) // 2
    own = [max(weights.get(unit, 0.0), 0.0) for unit in units[low:high]]
    total = sum(own)
    even = 1.0 / len(own)
    mass = list(accumulate(0.5 * even + 0.5 * (w / total if total > 0 else even) for w in own))
    return min(range(low + 1, high), key=lambda place: abs(mass[place - low - 1] - 0.5))


def ddmin(units: Sequence[str], ask: Ask) -> tuple[str, ...]:
    """Delta debugging: a 1-minimal bad subset of `units`, which as a whole must be bad."""
    current, parts = list(units), 2
    while len(current) >= 2:
        reduced = _reduce(current, parts, ask)
        if reduced is not None:
            current, parts = reduced
        elif parts < len(current):
            parts = min(2 * parts, len(current))
        else:
            break
    return tuple(current)


def _reduce(current: list[str], parts: int, ask: Ask) -> tuple[list[str], int] | None:
    """A bad part, else a bad complement of a part, with the granularity to go on with."""
    bounds = [len(current) * i // parts for i in range(parts + 1)]
    slices = [slice(a, b) for a, b in pairwise(bounds)]
    for part in slices:
        if ask(frozenset(current[part])):
            return current[part], 2
    for part in slices:
        complement = current[: part.start] + current[part.stop :]
        if ask(frozenset(complement)):
            return complement, max(parts - 1, 2)
    return None
