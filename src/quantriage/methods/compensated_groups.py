"""Scales as the original GPTQ chooses them: min and max of a group as compensated when it is reached.

Kept as the baseline to compare against. The weight as compensated for the errors so far is the one that
minimises the objective over all columns still free; with the feedback factor it is found for one group by a
triangular solve. (AutoGPTQ reads a group's range from a weight that lacks the errors of its current block
of 128 columns; that slip is not reproduced.)
"""

import torch
from torch import Tensor

from quantriage.methods.error_feedback import visit
from quantriage.methods.hessian_factor import HessianFactor
from quantriage.methods.lanes import lane_grid
from quantriage.numerics.min_max import min_max_qparams
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme


def round_with_group_scales(weight: Tensor, factor: HessianFactor, scheme: Scheme) -> QuantizedTensor:
    """Weight [out, in] with the columns visited in natural order. Memory: four copies of the weight."""
    rows, columns = weight.shape
    width = scheme.group_width(columns)
    errors = weight.T.index_select(0, factor.order)  # [in, out]
    targets = errors.clone()
    scales, zeros, codes = [], [], []
    for last in range(columns, 0, -width):  # positions run against the natural order
        group = slice(last - width, last)
        own = factor.feedback[group, group]
        targets[group].addmm_(factor.feedback[group, last:], errors[last:])
        gap = targets[group] - errors[group]
        moved = torch.linalg.solve_triangular(own, gap, upper=True, unitriangular=True)
        found = min_max_qparams((errors[group] + moved).flip(0).T, scheme)
        grid = lane_grid(width, [scheme], [[found]], [rows])
        visit(targets[group], errors[group], own, grid, [0] * width)
        codes.append(grid.unsigned(targets[group]).flip(0).T)
        scales.append(found.scale)
        if found.zero_point is not None:
            zeros.append(found.zero_point)
    zero_point = torch.cat(zeros, 1) if zeros else None
    return QuantizedTensor(scheme, torch.cat(codes, 1), torch.cat(scales, 1), zero_point)
