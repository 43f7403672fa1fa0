"""Which production windows to add to a calibration set: greedily, the one that leaves least uncovered.

For each input only the directions matter in which production outweighs calibration most. There, with
calibration's damped second moment taken as the unit, a window is a small matrix; adding windows adds their
matrices, and what stays uncovered is trace(P (n + sum of added)^-1) times n. Every step is exact in those
directions, and windows that repeat one another gain nothing twice, which ranking them one by one would miss.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DIRECTIONS = 8
_ROUNDS = 4  # of subspace iteration; the leading directions are far above the rest
_WORTH = 0.02  # of the first window's gain; below it further windows are not proposed


def leading_directions(production: Tensor, factor: Tensor, count: int = DIRECTIONS, seed: int = 0) -> Tensor:
    """Orthonormal [in, count]: where L^-1 H_p L^-T is largest. production [in, in], factor L [in, in]."""
    width = len(production)
    count = min(count, width)
    generator = torch.Generator().manual_seed(seed)
    basis: Tensor = torch.linalg.qr(torch.randn(width, count, generator=generator).to(production.device))[0]
    for _ in range(_ROUNDS):
        pulled = torch.linalg.solve_triangular(factor.T, basis, upper=True)
        pushed = torch.linalg.solve_triangular(factor, production @ pulled, upper=False)
        basis = torch.linalg.qr(pushed)[0]
    return basis


@dataclass(frozen=True)
class Additions:
    """Windows in the order chosen, and the mismatch left after each as a part of all."""

    windows: tuple[int, ...]
    left: tuple[float, ...]


def choose_additions(grams: Tensor, calibration_windows: int, most: int) -> Additions:
    """Greedy choice among windows. grams [windows, inputs, k, k]: mean of z z^T over each window's tokens.

    Ends after `most`, or when a window gains little. Memory: a few times grams.
    """
    windows, inputs, size, _ = grams.shape
    production = grams.mean(dim=0).double()  # [inputs, k, k]
    scale = production.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-30)  # [inputs]
    covered = torch.eye(size, dtype=torch.float64).expand(inputs, -1, -1) * float(calibration_windows)
    all_grams = grams.double()
    chosen: list[int] = []
    left: list[float] = []
    before, first = 1.0, 0.0
    for _ in range(min(most, windows)):
        inverse = torch.linalg.inv(covered.unsqueeze(0) + all_grams)  # [windows, inputs, k, k]
        traces = (production * inverse).sum(dim=(-1, -2)) * calibration_windows / scale  # [windows, inputs]
        after = traces.mean(dim=1)
        if chosen:
            after[torch.tensor(chosen)] = float("inf")
        best = int(after.argmin())
        gain = before - float(after[best])
        first = first or gain
        if gain <= _WORTH * first:
            break
        chosen.append(best)
        left.append(float(after[best]))
        covered = covered + all_grams[best]
        before = float(after[best])
    return Additions(tuple(chosen), tuple(left))
