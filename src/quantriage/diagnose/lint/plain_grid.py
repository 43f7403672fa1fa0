"""Plain rounding in a grid that is no integer scheme: block formats with real minima, signed scales, tables.

Each block gets the scale that its largest weight asks for and every weight the nearest point. Scales are not
rounded here, although k-quants and double quantization do that too, and nothing is searched: what comes out
is about what a tool without data leaves (k-quants that search do a little better), so it serves as a
yardstick and not as a model of any tool.
"""

import torch
from torch import Tensor

from quantriage.diagnose.lint.grouping import groups_of
from quantriage.numerics.stored_weight import StoredWeight

_CHUNK = 1 << 18  # weights whose distances to all points of a table are looked at together


def has_plain_grid(stored: StoredWeight) -> bool:
    """Whether `round_plainly` knows the grid: groups are runs of columns, and codes are steps or a table."""
    scale = stored.scale
    across = scale is not None and scale.ndim == 2 and scale.shape[0] == 1 < scale.shape[1]  # HQQ's axis 0
    return not across and stored.column_group is None and groups_of(stored) is not None


def round_plainly(weight: Tensor, stored: StoredWeight) -> Tensor:
    """Plain rounding of weight [rows, in], float32, in the grid of `stored`, which `has_plain_grid`.

    The rows may be some of the stored ones if no block straddles two.
    """
    blocks = weight.to(torch.float32).reshape(-1, _width(stored))
    if stored.points is not None:
        rounded = _on_points(blocks, stored.points.to(torch.float32))
    elif _moves_zero(stored):
        rounded = _between_ends(blocks, stored.levels)
    else:
        rounded = _around_zero(blocks, stored.levels)
    return rounded.reshape(weight.shape)


def straddles(stored: StoredWeight) -> bool:
    """Whether blocks run over the ends of rows, so that rows cannot be rounded apart."""
    return stored.shape[1] % _width(stored) != 0


def _moves_zero(stored: StoredWeight) -> bool:
    """Whether each block has a zero of its own, so that its grid reaches from its least to its largest."""
    zero = stored.zero_point
    return stored.offset is not None or (zero is not None and bool((zero != stored.levels // 2).any()))


def _width(stored: StoredWeight) -> int:
    """Weights that share a scale, in a run."""
    rows, columns = stored.shape
    count = rows * columns
    if stored.points is not None and stored.scale is not None and stored.scale.ndim == 1:
        return count // stored.scale.shape[0]
    groups = groups_of(stored)
    return columns if groups is None else columns // groups.scale.shape[1]


def _on_points(blocks: Tensor, points: Tensor) -> Tensor:
    """The largest weight falls on the point of largest magnitude, in sign too where only one has it."""
    top = points[points.abs().argmax()]
    if bool((points == -top).any()):
        largest, top = blocks.abs().amax(1, keepdim=True), top.abs()
    else:
        largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = largest / top
    found = torch.zeros_like(blocks)
    step = max(1, _CHUNK // blocks.shape[1])
    for start in range(0, len(blocks), step):
        part = slice(start, start + step)
        steps = torch.where(scale[part] != 0, blocks[part] / scale[part], 0.0)
        nearest = (steps.unsqueeze(-1) - points).abs_().argmin(-1)
        found[part] = points[nearest] * scale[part]
    return found


def _between_ends(blocks: Tensor, levels: int) -> Tensor:
    """From the least to the largest weight, zero included, as formats with a real minimum store it."""
    low = blocks.amin(1, keepdim=True).clamp(max=0)
    scale = (blocks.amax(1, keepdim=True).clamp(min=0) - low) / (levels - 1)
    codes = torch.where(scale > 0, (blocks - low) / scale, 0.0).round_().clamp_(0, levels - 1)
    return codes * scale + low


def _around_zero(blocks: Tensor, levels: int) -> Tensor:
    """The largest weight falls on the longer arm of the codes: the scale takes its sign."""
    half = levels // 2
    scale = blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / -half
    codes = torch.where(scale != 0, blocks / scale, 0.0).round_().clamp_(-half, levels - 1 - half)
    return codes * scale
