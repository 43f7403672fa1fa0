"""Scale and zero point of every group, and the one rule that turns a value range into them.

The scale is rounded to the dtype in which it will be stored *before* any code is chosen: choosing codes
with the exact scale and rounding it afterwards, as many tools do, adds an error nobody measured. A scale
is never zero, subnormal or infinite: kernels flush subnormals, and 1 / scale must stay finite.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.numerics.schemes import IntGrid, PerTensor, ScaleDtype, Scheme

SCALE_DTYPES: dict[ScaleDtype, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


@dataclass(frozen=True)
class QParams:
    """What is stored beside the codes of a weight [out, in].

    scale: the scheme's scale dtype, [out, groups] ([1, 1] per tensor).
    zero_point: uint8 of scale's shape, or None for a symmetric grid.
    """

    scale: Tensor
    zero_point: Tensor | None


def float_zero_point(scale: Tensor, zero_point: Tensor | None, grid: IntGrid) -> Tensor:
    """What is subtracted from codes: the zero point, a symmetric grid's center; float32 of scale's shape."""
    if zero_point is None:
        return torch.full_like(scale, grid.center, dtype=torch.float32)
    return zero_point.to(scale.device, torch.float32)


def group_ranges(weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of every group of weight [out, in], each [out, groups] (or [1, 1])."""
    if isinstance(scheme.granularity, PerTensor):
        low, high = weight.aminmax()
        return low.view(1, 1), high.view(1, 1)
    rows, columns = weight.shape
    grouped = weight.reshape(rows, -1, scheme.group_width(columns))
    return grouped.amin(-1), grouped.amax(-1)


def scale_and_zero(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Scale (float32 holding a value of the stored dtype) and zero point (float32) for ranges of any shape.

    The range is widened to hold zero. A symmetric grid gets the smallest scale that clips neither end of
    -center .. center - 1, so that a weight already on such a grid is found again exactly.
    """
    grid = scheme.grid
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    if grid.symmetric:
        exact = torch.maximum(low / -grid.center, high / (grid.center - 1))
    else:
        exact = high / (grid.levels - 1) - low / (grid.levels - 1)  # high - low could overflow
    limits = torch.finfo(SCALE_DTYPES[scheme.scale_dtype])
    stored = exact.clamp(limits.tiny, limits.max).to(SCALE_DTYPES[scheme.scale_dtype]).to(torch.float32)
    scale = torch.where(exact > 0, stored, 1.0)
    if grid.symmetric:
        return scale, torch.full_like(scale, grid.center)
    return scale, (low / -scale).round_().clamp_(0, grid.levels - 1)


def stored(scale: Tensor, zero: Tensor, scheme: Scheme) -> QParams:
    """QParams of float32 scales and zero points [out, groups] that already hold storable values."""
    zero_point = None if scheme.grid.symmetric else zero.to(torch.uint8)
    return QParams(scale.to(SCALE_DTYPES[scheme.scale_dtype]), zero_point)
