"""From the rows' KL by sequence to two tables: every row, and what each ingredient gains alone and on top."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.ablation.rows import INGREDIENTS, RTN, Ingredient
from benchmarks.markdown import table
from quantriage.evaluate.intervals import mean_interval
from quantriage.records.types import Interval


@dataclass(frozen=True)
class Result:
    """A row as measured. kl: mean of each evaluation sequence, nats per token. cpu_seconds: all it took."""

    label: str
    kl: tuple[float, ...]
    cpu_seconds: float


@dataclass(frozen=True)
class Gain:
    """KL with an ingredient less KL without it, paired by sequence; below zero is better.

    share: of the KL without it. cpu_seconds: what it adds.
    """

    difference: Interval
    share: float
    cpu_seconds: float


def gain(made: Result, without: Result) -> Gain:
    """What one row has on another of the same evaluation sequences."""
    left, right = np.asarray(made.kl), np.asarray(without.kl)
    if left.shape != right.shape:
        raise ValueError(f"{made.label} has {len(left)} sequences, {without.label} {len(right)}")
    difference = mean_interval((left - right).tolist())
    return Gain(difference, difference.value / float(right.mean()), made.cpu_seconds - without.cpu_seconds)


def gains(
    results: Sequence[Result], ingredients: Sequence[Ingredient] = INGREDIENTS
) -> dict[str, tuple[Gain | None, Gain | None]]:
    """Alone and on top by ingredient, as far as the rows are there."""
    known = {result.label: result for result in results}
    found = {}
    for ingredient in ingredients:
        pairs = _pair(known, ingredient.alone), _pair(known, ingredient.on_top)
        if any(pair is not None for pair in pairs):
            found[ingredient.name] = pairs
    return found


def _pair(known: Mapping[str, Result], rows: tuple[str, str] | None) -> Gain | None:
    if rows is None or not all(label in known for label in rows):
        return None
    return gain(known[rows[0]], known[rows[1]])


def markdown(results: Sequence[Result]) -> str:
    """Both tables."""
    plain = next((result for result in results if result.label == RTN), results[0])
    whole = mean_interval(plain.kl).value
    measured = []
    for result in results:
        kl = mean_interval(result.kl)
        interval = f"{kl.value:.4f} ({kl.low:.4f} to {kl.high:.4f})"
        measured.append((result.label, interval, f"{kl.value / whole:.3f}", f"{result.cpu_seconds:.1f}"))
    rows = table(("row", "KL (95%)", f"of {plain.label}'s", "CPU s"), measured)
    pair = ("change of KL (95%)", "of it", "CPU s added")
    head = ("ingredient", f"alone: {pair[0]}", *pair[1:], f"on top: {pair[0]}", *pair[1:])
    found = [(name, *(cell for one in both for cell in _cells(one))) for name, both in gains(results).items()]
    return f"{rows}\n\n{table(head, found)}\n"


def _cells(found: Gain | None) -> tuple[str, str, str]:
    if found is None:
        return "", "", ""
    of = found.difference
    return (
        f"{of.value:+.4f} ({of.low:+.4f} to {of.high:+.4f})",
        f"{100 * found.share:+.1f}%",
        f"{found.cpu_seconds:+.1f}",
    )
