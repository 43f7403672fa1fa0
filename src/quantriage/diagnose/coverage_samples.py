"""Two-sample tests of windows against windows: do calibration and production come from one distribution.

Windows are dealt to the two sides at random many times; the p-value is the share of deals whose statistic is
no smaller than the real one. That needs no assumption but that windows are exchangeable, where a chi-square
over tokens would take the tokens of one window for independent and always reject.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantriage.records.calibration import TokenCoverage, TwoSample

DEALS = 999
Floats = NDArray[np.float64]
_COMMONEST = 12


@dataclass(frozen=True)
class TokenReport:
    """What the tokens say: the record, its test, and which ids calibration never has."""

    test: TwoSample
    divergence: float
    unseen: float
    unseen_within: float
    commonest: tuple[tuple[int, int], ...]  # id, count in production
    known: Tensor  # bool [vocabulary used]: ids of calibration

    def record(self, decode: Callable[[list[int]], str]) -> TokenCoverage:
        """The record, ids turned into text."""
        return TokenCoverage(
            divergence=self.divergence,
            unseen=self.unseen,
            unseen_within=self.unseen_within,
            commonest_unseen=tuple((decode([i]), count) for i, count in self.commonest),
        )


def compare_tokens(calibration: Tensor, production: Tensor, seed: int) -> TokenReport:
    """Token ids [windows, length] of both sides. Memory: windows times kinds of token, float64."""
    both = torch.cat([calibration.flatten(), production.flatten()]).numpy()
    kinds, codes = np.unique(both, return_inverse=True)
    windows = len(calibration) + len(production)
    counts = np.zeros((windows, len(kinds)))
    rows = np.concatenate(
        [
            np.repeat(np.arange(len(calibration)), calibration.shape[1]),
            len(calibration) + np.repeat(np.arange(len(production)), production.shape[1]),
        ]
    )
    np.add.at(counts, (rows, codes), 1.0)
    split = len(calibration)

    def statistic(order: NDArray[np.int64]) -> float:
        return jensen_shannon(counts[order[:split]].sum(axis=0), counts[order[split:]].sum(axis=0))

    ours, theirs = counts[:split].sum(axis=0), counts[split:].sum(axis=0)
    missing = np.where(ours == 0, theirs, 0.0)
    top = np.argsort(-missing, kind="stable")[:_COMMONEST]
    halves = counts[:split:2].sum(axis=0), counts[1:split:2].sum(axis=0)
    known = torch.zeros(int(kinds.max()) + 1, dtype=torch.bool)
    known[torch.from_numpy(kinds[ours > 0])] = True
    test = permutation_test("tokens", statistic, windows, seed)
    return TokenReport(
        test=test,
        divergence=test.statistic,
        unseen=float(missing.sum() / max(1.0, theirs.sum())),
        unseen_within=float(halves[1][halves[0] == 0].sum() / max(1.0, halves[1].sum())),
        commonest=tuple((int(kinds[i]), int(missing[i])) for i in top if missing[i] > 0),
        known=known,
    )


def jensen_shannon(left: Floats, right: Floats) -> float:
    """Jensen-Shannon divergence of two counts [kinds], nats: 0 for equal shares, log 2 for disjoint ones."""
    p, q = left / left.sum(), right / right.sum()
    middle = (p + q) / 2
    return (_divergence(p, middle) + _divergence(q, middle)) / 2


def _divergence(p: Floats, q: Floats) -> float:
    held = p > 0
    return float((p[held] * np.log(p[held] / q[held])).sum())


def energy_distance(distances: Floats, split: int, order: NDArray[np.int64]) -> float:
    """Energy statistic (Szekely and Rizzo 2013) of the first `split` of `order` against the rest.

    distances [n, n]; 2 E|x - y| - E|x - x'| - E|y - y'|, zero only if the two distributions are equal.
    """
    left, right = order[:split], order[split:]
    between = distances[np.ix_(left, right)].mean()
    own = distances[np.ix_(left, left)].mean() + distances[np.ix_(right, right)].mean()
    return float(2 * between - own)


def permutation_test(
    what: str, statistic: Callable[[NDArray[np.int64]], float], windows: int, seed: int
) -> TwoSample:
    """The statistic of the windows in order against its values when they are dealt at random."""
    draw = np.random.default_rng([seed, 11])
    real = statistic(np.arange(windows))
    dealt = np.array([statistic(draw.permutation(windows)) for _ in range(DEALS)])
    at_least = int((dealt >= real - 1e-12).sum())
    return TwoSample(
        what=what, statistic=real, baseline=float(dealt.mean()), p_value=(1 + at_least) / (1 + DEALS)
    )
