"""What outliers do to a scheme at one weight: code points spent on them, and the error group by group.

A code point is wasted if no value within 3 sigma of its group (its row, its tensor) needs it: the codes
needed run from the one of the smallest such value to the one of the largest. Some waste is normal, for the
extremes of any group lie apart; so the same figure for Gaussian weights stands beside it. Counting unused
codes was rejected: a group of 64 leaves some of 16 codes unused by mere chance.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from quantriage.diagnose.fisher import nearest
from quantriage.errors import BudgetError
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import PerGroup, PerTensor, Scheme
from quantriage.plan.group_size import resolve
from quantriage.records.outliers import RANGE_SIGMA, ErrorMap, SchemeWaste

_GROUPS = (16, 32, 64, 128, 256)
_GAUSSIAN_WEIGHTS = 1 << 16
_CELLS = 32


@dataclass(frozen=True)
class SchemeLook:
    """Waste and error of a scheme, and its errors by group where it has groups."""

    waste: SchemeWaste
    map: ErrorMap | None


def look(site: str, weight: Tensor, scheme: Scheme, outliers: Tensor | None) -> SchemeLook | None:
    """`scheme`, with a group size that divides, at weight [out, in]; None if none does.

    outliers: bool [out, in], or None if there is none. Memory: four float32 copies of the weight.
    """
    try:
        used, _ = resolve(scheme, weight.shape[1], _GROUPS)
    except BudgetError:
        return None
    quantized = nearest(weight, used)
    difference = quantized.dequantize().sub_(weight)
    norm = float(torch.linalg.vector_norm(weight, dtype=torch.float64))
    apart = None if outliers is None else _error_apart(weight, used, outliers) / norm
    waste = SchemeWaste(
        asked=str(scheme),
        scheme=str(used),
        wasted=wasted(weight, quantized),
        wasted_gaussian=_of_gaussian(str(used), weight.shape[1]),
        error=float(torch.linalg.vector_norm(difference, dtype=torch.float64)) / norm if norm else 0.0,
        error_apart=apart,
    )
    grouped = isinstance(used.granularity, PerGroup)
    return SchemeLook(waste, error_map(site, weight, difference, used) if grouped and norm else None)


def _error_apart(weight: Tensor, scheme: Scheme, outliers: Tensor) -> float:
    """Norm of the error if the outliers are kept elsewhere, exactly, and are zero in what is rounded."""
    rest = weight.masked_fill(outliers, 0.0)
    return float(torch.linalg.vector_norm(nearest(rest, scheme).dequantize().sub_(rest), dtype=torch.float64))


def wasted(weight: Tensor, quantized: QuantizedTensor) -> float:
    """Mean over groups of the share of code points that no value within 3 sigma needs. Weight [out, in]."""
    scheme = quantized.scheme
    whole = isinstance(scheme.granularity, PerTensor)
    width = weight.numel() if whole else scheme.group_width(weight.shape[1])
    groups = weight.reshape(-1, width)  # [groups, width]
    codes = quantized.codes.reshape(-1, width)
    std, mean = torch.std_mean(groups, dim=1, keepdim=True, correction=0)
    within = (groups - mean).abs_() <= RANGE_SIGMA * std
    lowest = codes.masked_fill(~within, 255).amin(dim=1).to(torch.int32)
    highest = codes.masked_fill(~within, 0).amax(dim=1).to(torch.int32)
    needed = (highest - lowest + 1).clamp(1, scheme.grid.levels)
    needed = torch.where(std.flatten() > 0, needed, scheme.grid.levels)  # a constant group wastes nothing
    return 1 - float(needed.to(torch.float64).mean()) / scheme.grid.levels


@cache
def _of_gaussian(scheme: str, columns: int) -> float:
    generator = torch.Generator().manual_seed(0)
    rows = max(4, _GAUSSIAN_WEIGHTS // columns)
    weight = torch.randn(rows, columns, generator=generator)
    return wasted(weight, nearest(weight, Scheme.parse(scheme)))


def error_map(site: str, weight: Tensor, difference: Tensor, scheme: Scheme) -> ErrorMap:
    """Root mean square of difference [out, in] by group over that of the weight, at most 32 x 32 cells."""
    width = scheme.group_width(weight.shape[1])
    squares = difference.view(weight.shape[0], -1, width).square().mean(dim=2)  # [out, groups]
    rows, columns = (-(-size // _CELLS) for size in squares.shape)
    padding = (0, -squares.shape[1] % columns, 0, -squares.shape[0] % rows)
    padded = torch.nn.functional.pad(squares, padding)
    cells = padded.view(-1, rows, padded.shape[1] // columns, columns).amax(dim=(1, 3))
    relative = (cells.to(torch.float64) / weight.square().mean(dtype=torch.float64)).sqrt()
    return ErrorMap(
        site=site,
        scheme=str(scheme),
        rows_per_cell=rows,
        groups_per_cell=columns,
        errors=tuple(tuple(float(f"{value:.4g}") for value in row) for row in relative.tolist()),
    )
