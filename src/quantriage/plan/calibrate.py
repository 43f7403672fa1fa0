"""Correct predictions by what was measured: one factor for each scheme, fitted to measured assignments.

Predictions are sums over sites and come out too low by an amount that differs between schemes (symmetric
grids were 7% more optimistic than asymmetric ones on SmolLM2), so an allocation on raw predictions buys too
much of what was flattered. The uniform baselines are measured anyway; they say how flattered each scheme is.
A factor for each site was rejected: there are fewer measurements than sites.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import lsq_linear

from quantriage.numerics.schemes import Scheme
from quantriage.plan.units import Unit

_PULL = 0.1  # of a scheme's share: how much a factor is held to the common one
_WITHIN = 4.0  # factors stay within this ratio of the common one


def scheme_factors(
    units: Sequence[Unit], measured: Sequence[tuple[Mapping[str, Scheme | None], float]]
) -> dict[Scheme, float]:
    """Factor for each scheme of the units' options, from (site name -> scheme, measured KL) assignments.

    Least squares, pulled to the ratio of all that was measured to all that was predicted, which is also the
    factor of schemes that no assignment holds. Assignments with a site that has no prediction are left out;
    without any, every factor is 1.
    """
    schemes = sorted({o.scheme for u in units for o in u.options if o.scheme is not None}, key=str)
    rows, targets = [], []
    for assignment, kl in measured:
        shares = _shares(units, assignment)
        if shares is not None:
            rows.append([shares.get(scheme, 0.0) for scheme in schemes])
            targets.append(kl)
    predicted = float(np.sum(rows)) if rows else 0.0
    if not predicted > 0:
        return dict.fromkeys(schemes, 1.0)
    common = float(np.sum(targets)) / predicted
    pull = np.diag(_PULL * np.sum(rows, axis=0))
    matrix = np.concatenate([np.asarray(rows), pull])
    goal = np.concatenate([np.asarray(targets), pull.sum(axis=1) * common])
    found = lsq_linear(matrix, goal, bounds=(common / _WITHIN, common * _WITHIN)).x
    seen = np.sum(rows, axis=0) > 0
    return {s: float(f) if known else common for s, f, known in zip(schemes, found, seen, strict=True)}


def scaled(units: Sequence[Unit], factors: Mapping[Scheme, float]) -> tuple[Unit, ...]:
    """The units with every option's predicted KL times its scheme's factor."""
    return tuple(
        Unit(
            unit.sites,
            tuple(o if o.scheme is None else replace(o, kl=o.kl * factors[o.scheme]) for o in unit.options),
        )
        for unit in units
    )


def _shares(units: Sequence[Unit], assignment: Mapping[str, Scheme | None]) -> dict[Scheme, float] | None:
    """Predicted KL by scheme; None if some choice has no prediction."""
    shares: dict[Scheme, float] = {}
    for unit in units:
        scheme = assignment[unit.sites[0].name]
        option = next((o for o in unit.options if o.scheme == scheme), None)
        if option is None:
            return None
        if scheme is not None:
            shares[scheme] = shares.get(scheme, 0.0) + option.kl
    return shares
