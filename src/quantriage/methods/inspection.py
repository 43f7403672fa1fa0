"""Refuse what no method can use, and name it: non-finite weights, broken Hessians, shapes that disagree."""

from collections.abc import Sequence

import torch
from torch import Tensor

from quantriage.errors import CheckpointError, DataError
from quantriage.methods.protocol import SiteStatistics
from quantriage.numerics.schemes import Scheme


def inspect_inputs(weights: Sequence[Tensor], statistics: SiteStatistics, schemes: Sequence[Scheme]) -> None:
    """Raise CheckpointError (weights), DataError (Hessian) or BudgetError (a group that does not divide).

    Memory: one row of flags; the sum of a float tensor is finite only if every entry is.
    """
    columns = statistics.hessian.shape[0]
    if statistics.hessian.shape != (columns, columns) or statistics.hessian.dtype != torch.float32:
        found = f"{statistics.hessian.dtype} {list(statistics.hessian.shape)}"
        raise DataError(f"Hessian is {found}: expected a square float32 matrix")
    _refuse_bad_hessian(statistics.hessian)
    for weight in weights:
        if weight.ndim != 2 or weight.shape[1] != columns or weight.dtype != torch.float32:
            found = f"{weight.dtype} {list(weight.shape)}"
            raise CheckpointError(f"weight is {found}: expected float32 [out, {columns}] as its Hessian has")
        bad = ~torch.isfinite(weight.sum(1, dtype=torch.float64))
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            column = int((~torch.isfinite(weight[row])).nonzero()[0])
            raise CheckpointError(
                f"weight holds {float(weight[row, column])} at row {row}, column {column} "
                f"({int(bad.sum())} of {weight.shape[0]} rows are not finite): repair or re-download it"
            )
    if statistics.outputs:
        rows = [sum(len(moment) for moment in of_weight) for of_weight in statistics.outputs]
        if rows != [len(weight) for weight in weights]:
            raise DataError(f"gradients at {rows} outputs: expected {[len(weight) for weight in weights]}")
    for scheme in schemes:
        scheme.group_width(columns)


def _refuse_bad_hessian(hessian: Tensor) -> None:
    bad = ~torch.isfinite(hessian.sum(1, dtype=torch.float64))
    if bool(bad.any()):
        raise DataError(
            f"Hessian is not finite for input {int(bad.nonzero()[0])} ({int(bad.sum())} of "
            f"{hessian.shape[0]} inputs): the activations overflowed; use float32 compute or other text"
        )
    negative = hessian.diagonal() < 0
    if bool(negative.any()):
        column = int(negative.nonzero()[0])
        raise DataError(
            f"Hessian has {float(hessian[column, column])} on its diagonal at input {column}: "
            f"expected a sum of squares; the statistics are damaged, gather them again"
        )
