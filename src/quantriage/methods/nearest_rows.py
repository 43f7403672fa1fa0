"""Rows that plain rounding serves better keep it, so that no method loses to the baseline.

Error feedback wins on the whole and can lose on a row: with few levels its corrections clip. Rows are
independent, so the choice is made row by row where every row has scales of its own, and for the whole
weight where one scale serves it all.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantriage.methods.objective import quadratic
from quantriage.numerics.min_max import min_max_qparams
from quantriage.numerics.qparams import QParams
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.rounding import quantize
from quantriage.numerics.schemes import PerTensor


@dataclass(frozen=True)
class Candidate:
    """A quantized weight [out, in] and dw H dw^T of each of its rows, [out]."""

    quantized: QuantizedTensor
    error: Tensor


def measured(weight: Tensor, quantized: QuantizedTensor, hessian: Tensor) -> Candidate:
    """The candidate with its error against weight [out, in]. Memory: two copies of the weight."""
    return Candidate(quantized, quadratic(quantized.dequantize().sub_(weight), hessian))


def keep_nearest_rows(weight: Tensor, hessian: Tensor, candidate: Candidate) -> tuple[QuantizedTensor, int]:
    """The better of candidate and nearest rounding, with its own scales and with min-max scales.

    Also how many rows took the nearest.
    """
    scheme = candidate.quantized.scheme
    own = QParams(candidate.quantized.scale, candidate.quantized.zero_point)
    taken = torch.zeros(weight.shape[0], dtype=torch.bool)
    for qparams in (own, min_max_qparams(weight, scheme)):
        nearest = measured(weight, quantize(weight, scheme, qparams), hessian)
        if isinstance(scheme.granularity, PerTensor):
            better = (nearest.error.sum() < candidate.error.sum()).expand(weight.shape[0])
        else:
            better = nearest.error < candidate.error
        if bool(better.any()):
            candidate = _mixed(better, nearest, candidate)
            taken = taken | better
    return candidate.quantized, int(taken.sum())


def _mixed(rows: Tensor, chosen: Candidate, other: Candidate) -> Candidate:
    """`chosen` where rows [out] is true, else `other`."""
    first, second = chosen.quantized, other.quantized
    where = rows.unsqueeze(1) if second.scale.shape[0] == rows.shape[0] else rows[:1].unsqueeze(1)
    zero_point = second.zero_point
    if first.zero_point is not None and second.zero_point is not None:
        zero_point = torch.where(where, first.zero_point, second.zero_point)
    codes = torch.where(rows.unsqueeze(1), first.codes, second.codes)
    scale = torch.where(where, first.scale, second.scale)
    mixed = replace(second, codes=codes, scale=scale, zero_point=zero_point)
    return Candidate(mixed, torch.where(rows, chosen.error, other.error))
