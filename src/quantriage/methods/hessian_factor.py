"""Factor a damped Hessian so that rounding errors can be fed to the columns not yet rounded.

GPTQ is usually written with the Cholesky factor of the *inverse* Hessian. The same codes come from the
factor of the Hessian itself (LDLQ in QuIP, arXiv:2307.13304, which shows that the two are equal): with
H = R D R^T, R unit upper triangular in the order of visits, column j is rounded at

    target_j = w_j + sum over visited i of R_ij * (w_i - quantized_i).

That needs one factorization, where the usual way factors, inverts and factors again, and it never forms the
inverse of an ill-conditioned matrix in float32.
"""

from dataclasses import dataclass

import torch
from scipy.linalg import lapack
from torch import Tensor

from quantriage.errors import DataError

_RAISES = 8  # from 1% of the mean diagonal to a million times it: then it is no Hessian
_ROWS = 512  # rows permuted at a time


@dataclass(frozen=True)
class HessianFactor:
    """Columns are visited from the last position of `order` to its first.

    order: [in], the natural column at each position. damping: as a part of the mean diagonal.
    feedback: [in, in]; its strict upper triangle at (j, i), i visited before j, is R_ij above. The lower
    triangle holds left-overs and must not be read.
    pivots: [in], natural order, D of each column: what its rounding residual counts for once the columns
    still free have taken up what they can. damping_added: the damping in the Hessian's own unit.
    """

    order: Tensor
    feedback: Tensor
    pivots: Tensor
    damping: float
    damping_added: float
    raised: int


def factorize(hessian: Tensor, order: Tensor, damping: float) -> HessianFactor:
    """Factor hessian [in, in] (float32, symmetric), raising the damping tenfold until it succeeds.

    A column of zeros gets only the damping and feeds nothing to the others. Memory: one copy of the Hessian,
    factored in place. Raises DataError if no damping makes it positive definite.
    """
    mean = float(hessian.diagonal().mean(dtype=torch.float64))
    for raised in range(_RAISES):
        used = damping * 10.0**raised
        matrix = _permuted(hessian, order)
        added = used * mean if mean > 0 else 1.0
        matrix.diagonal().add_(added)
        # Row-major and symmetric: LAPACK's column-major lower factor is the upper one here, in place.
        factor, status = lapack.spotrf(matrix.numpy().T, lower=1, clean=0, overwrite_a=1)
        if status == 0:
            upper = torch.from_numpy(factor.T)
            roots = upper.diagonal().clone()
            upper.div_(roots.unsqueeze(1))
            pivots = torch.empty_like(roots).index_copy_(0, order, roots.square())
            return HessianFactor(order, upper, pivots, used, added, raised)
    raise DataError(
        f"Hessian is not positive definite even with {used:g} times its mean diagonal added: expected a "
        f"sum of outer products; the statistics are damaged, gather them again"
    )


def _permuted(hessian: Tensor, order: Tensor) -> Tensor:
    """hessian[order][:, order] with one copy in memory instead of two."""
    matrix = hessian.index_select(0, order)
    for start in range(0, matrix.shape[0], _ROWS):
        rows = matrix[start : start + _ROWS]
        rows.copy_(rows.index_select(1, order))
    return matrix
