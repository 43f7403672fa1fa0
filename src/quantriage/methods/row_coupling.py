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

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from quantriage.errors import DataError

T = TypeVar("T")

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
        self.places = torch.cat(self.panels).argsort()  # [out]: of each row, in the panels put end to end

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


def by_panels(
    weights: Sequence[Tensor],
    couplings: Sequence[RowCoupling],
    ways: int,
    round_rows: Callable[[list[list[Tensor]]], Sequence[Sequence[T]]],
    values: Callable[[T], Tensor],
) -> list[list[list[T]]]:
    """Weights [out_k, in] rounded panel by panel, in several ways that each keep their own errors.

    round_rows: what targets[way][weight] [rows, in] become; weights whose panels are used up are left out.
    values: of one such piece. Returns the pieces by way and weight, rows in the order of the panels.
    Memory: the weights once for each way, and the pieces.
    """
    errors = [[torch.zeros_like(weight) for weight in weights] for _ in range(ways)]
    pieces: list[list[list[T]]] = [[[] for _ in weights] for _ in range(ways)]
    for panel in range(max(len(coupling.panels) for coupling in couplings)):
        sites = [i for i, coupling in enumerate(couplings) if panel < len(coupling.panels)]
        rounded = round_rows(
            [[couplings[i].target(panel, weights[i], own[i]) for i in sites] for own in errors]
        )
        for way, of_way in enumerate(rounded):
            for i, piece in zip(sites, of_way, strict=True):
                rows = couplings[i].panels[panel]
                errors[way][i][rows] = values(piece) - weights[i][rows]
                pieces[way][i].append(piece)
    return pieces
