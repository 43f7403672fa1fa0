"""A candidate whose weights were rescaled on purpose, seen in the reference's scaling.

AWQ, SmoothQuant and `--fold channels` divide a norm by factors and multiply the columns behind it by them, or
rows by factors and the columns that read them by the inverse. The model computes the same, but no unit of it
fits into the reference: swapped in alone, each ruins it. Here the factors are taken back on both sides, so
that what is left of a difference is rounding. Which parameters factors can move between is found by running
the reference's blocks (`model/folds.py`), so the function stays whatever the factors are. They are taken back
where half of the readers undo them: a norm that changed by itself is damaged, and so is a reader that does
not undo what the others do.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from quantriage.diagnose.hybrid import Pair, Unit
from quantriage.formats.scaled_weights import ScaledWeights
from quantriage.formats.weight_source import WeightSource
from quantriage.model.causal import CausalModel
from quantriage.model.folds import Fold, find_folds, scaled_weights

CHANGED = 0.02
"""Spread of log factors from which channels count as rescaled: rounding alone gives less."""
_NEARER = -0.5
"""Slope of the readers' log factors on the producers', halfway between untouched (0) and the inverse (-1)."""


def align(model: CausalModel, pair: Pair, units: Sequence[Unit]) -> ScaledWeights | None:
    """The candidate in the reference's scaling; None if it is not rescaled.

    Reads the norms, and the matrices of folds where one of them changed: a tool that rescales changes norms
    first of all. Memory: two matrices, and two blocks to find the folds.
    """
    if not any(_changed_norm(pair, unit) for unit in units):
        return None
    folds = find_folds(model)
    of_norms = [fold for fold in folds if _is_vector(model, pair, fold)]
    scales = _rescaled(model, pair, pair.candidate, of_norms)
    if not scales:
        return None
    blocks = {fold.block for fold in of_norms if fold.name in scales}
    others = [fold for fold in folds if fold.block in blocks and fold not in of_norms]
    norms_taken_back = _in_scaling(model, pair, of_norms, scales)
    scales |= _rescaled(model, pair, norms_taken_back, others)
    return _in_scaling(model, pair, folds, scales)


def _in_scaling(
    model: CausalModel, pair: Pair, folds: Sequence[Fold], scales: dict[str, Tensor]
) -> ScaledWeights:
    return replace(scaled_weights(model, folds, scales), inner=pair.candidate)


def _changed_norm(pair: Pair, unit: Unit) -> bool:
    name = unit.tensors[0]
    if unit.block is None or unit.site is not None or len(pair.reference.shape(name)) != 1:
        return False
    ours, theirs = (pair.read(name, side).float() for side in (False, True))
    return not torch.allclose(theirs, ours, rtol=CHANGED / 2, atol=0.0)


def _is_vector(model: CausalModel, pair: Pair, fold: Fold) -> bool:
    name = next(iter(fold.producers))
    return all(len(pair.reference.shape(tensor)) == 1 for tensor in _tensors(model, fold, name))


def _rescaled(
    model: CausalModel, pair: Pair, candidate: WeightSource, folds: Iterable[Fold]
) -> dict[str, Tensor]:
    """By fold: the candidate's channels [width] over the reference's, where half of the readers undo it."""
    found: dict[str, Tensor] = {}
    for fold in folds:
        ratio = _producers(model, pair, candidate, fold)
        if ratio is None:
            continue
        undone = [
            _undoes(ratio[fold.channels], _factors(pair, candidate, tensor, 0 if turned else 1))
            for name, turned in fold.consumers.items()
            for tensor in _tensors(model, fold, name)
        ]
        if 2 * sum(undone) >= len(undone):
            found[fold.name] = ratio
    return found


def _producers(model: CausalModel, pair: Pair, candidate: WeightSource, fold: Fold) -> Tensor | None:
    """Factors [width] of what is divided; None if it was not rescaled."""
    name, turned = next(iter(fold.producers.items()))
    tensors = _tensors(model, fold, name)
    if len(tensors) != 1:
        return None
    ratio = _factors(pair, candidate, tensors[0], 1 if turned else 0, fold.offset)
    return ratio if ratio is not None and float(ratio.log().std()) > CHANGED else None


def _factors(pair: Pair, candidate: WeightSource, name: str, axis: int, offset: float = 0.0) -> Tensor | None:
    """Best factors along an axis from the reference's tensor to the candidate's; None unless all positive."""
    ours, theirs = (t.float() + offset for t in (pair.reference.get(name), candidate.get(name)))
    if ours.ndim > 2 or ours.shape[axis] < 2:
        return None
    if ours.ndim == 2:
        ours, theirs = ours.square().sum(1 - axis), (ours * theirs).sum(1 - axis)
    ratio = torch.where(ours != 0, theirs / ours, 1.0)
    return ratio if bool((torch.isfinite(ratio) & (ratio > 0)).all()) else None


def _undoes(factors: Tensor, others: Tensor | None) -> bool:
    """Whether `others` [in] are nearer to the inverse of `factors` [in] than to a constant."""
    if others is None:
        return False
    x, y = factors.log(), others.log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum()) < _NEARER * float(x.square().sum())


def _tensors(model: CausalModel, fold: Fold, name: str) -> list[str]:
    return [piece.tensor for piece in model.block_pieces(fold.block)[name]]
