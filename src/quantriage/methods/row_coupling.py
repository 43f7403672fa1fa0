"""Rows that make up for each other: error feedback across outputs, beside that across inputs.

The loss's Hessian of a weight [out, in] is near a Kronecker product (YAQA, arXiv:2505.22988): the second
moment of its inputs, which error feedback over columns uses, and M, the second moment of the loss's gradients
at its outputs. With M = (1 + P) E (1 + P)^T a rounding dW costs the loss what (1 + P)^T dW costs row by row:
a row visited later can take up what the rows before it left, if it is rounded towards

    target_i = w_i - sum over visited m of P_mi * dw_m.

Row by row, as in the paper, is one long chain of tiny operations. Here rows are visited in panels: the rows
of a panel lie far apart, do not depend on each other, and go through the ordinary rounding side by side,
scales, feedback and refinement included. Twelve panels gain what single rows do (docs/lab-log.md). M comes
for runs of rows (stream/hessian.py); rows of different runs do not know of each other.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from quantriage.errors import DataError
from quantriage.numerics.quantized import QuantizedTensor

PANELS = 12
"""Panels of the default rounding."""
_DAMPING = 0.3  # of the mean diagonal; 0.1 to 1 differ by less than a tenth of the gain


class RowCoupling:
    """Panels of rows in the order of visits, and what each owes to those before it.

    moments: M of consecutive runs of rows, [n, n] each, of any scale. Memory: a copy of them; one run's in
    float64 at the start.
    """

    def __init__(self, moments: Sequence[Tensor], panels: int) -> None:
        bounds = torch.tensor([0, *(len(moment) for moment in moments)]).cumsum(0).tolist()
        self._runs = [slice(start, stop) for start, stop in pairwise(bounds)]
        count = max(1, min(panels, *(len(moment) for moment in moments)))
        self._parts = [[torch.arange(p, len(m), count) for p in range(count)] for m in moments]
        self._owed = [_owed(m, parts) for m, parts in zip(moments, self._parts, strict=True)]
        self.panels = [
            torch.cat([parts[p] + run.start for parts, run in zip(self._parts, self._runs, strict=True)])
            for p in range(count)
        ]

    def target(self, panel: int, weight: Tensor, errors: Tensor) -> Tensor:
        """What to round rows `panels[panel]` of weight [out, in] towards, [rows, in].

        errors: quantized minus weight, [out, in], of the panels before; other rows are not read as long as
        they are finite.
        """
        targets = weight[self.panels[panel]]
        if panel == 0:
            return targets
        start = 0
        for run, parts, owed in zip(self._runs, self._parts, self._owed, strict=True):
            own = parts[panel]
            targets[start : start + len(own)].addmm_(owed[own], errors[run], alpha=-1)
            start += len(own)
        return targets


def _owed(moment: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """F [n, n], float32: row i is rounded towards w_i - F_i dW, F_im = 0 unless m is in an earlier panel."""
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or not bool(torch.isfinite(moment).all()):
        raise DataError(
            f"second moment of outputs is {list(moment.shape)}, or not finite: expected a square matrix of "
            "finite sums; the gradients overflowed or the statistics are damaged, gather them again"
        )
    left = moment.double()
    mean = left.diagonal().mean()
    owed = torch.zeros_like(moment, dtype=torch.float32)
    if not mean > 0:
        return owed  # no gradient ever came: rows count alike, and by themselves
    left = left / mean
    left.diagonal().add_(_DAMPING)
    # The last panel is eliminated first: what it can take up is settled by all that was rounded before.
    for panel in range(len(parts) - 1, 0, -1):
        own, before = parts[panel], torch.cat(list(parts[:panel]))
        cross = left[own][:, before]
        solved = torch.linalg.solve(left[own][:, own], cross)
        owed[own[:, None], before[None, :]] = solved.float()
        left[before[:, None], before[None, :]] -= cross.T @ solved
    return owed


class RowPieces:
    """A quantized weight of `rows` rows, put together from those of its panels. Not for scales per tensor."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._made: QuantizedTensor | None = None

    def put(self, rows: Tensor, part: QuantizedTensor) -> None:
        """Rows [n] of the weight are `part` [n, in]."""
        if self._made is None:
            zeros = None if part.zero_point is None else self._empty(part.zero_point)
            self._made = replace(
                part, codes=self._empty(part.codes), scale=self._empty(part.scale), zero_point=zeros
            )
        made = self._made
        made.codes[rows], made.scale[rows] = part.codes, part.scale
        if made.zero_point is not None and part.zero_point is not None:
            made.zero_point[rows] = part.zero_point

    def joined(self) -> QuantizedTensor:
        """The whole, once every row has been put."""
        assert self._made is not None
        return self._made

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_empty(self._rows, *like.shape[1:])
