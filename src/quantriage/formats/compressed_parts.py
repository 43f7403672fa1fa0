"""The named parts of one module in a compressed-tensors checkpoint, and the checks all its formats share.

A codec gets the parts of one module by their short names and returns a CodedWeight. Whatever does not fit
raises CheckpointError with the module's name; nothing is reshaped by guessing, as upstream's own reader does,
because a scale stored transposed would then be read as noise without a word.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.errors import CheckpointError
from quantriage.numerics.coded_weight import ScaleLayout, scale_shape
from quantriage.numerics.float_grids import FloatGrid
from quantriage.numerics.schemes import IntGrid, PerChannel, PerGroup, PerTensor

WEIGHT, PACKED, SCALE, ZERO_POINT = "weight", "weight_packed", "weight_scale", "weight_zero_point"
SHAPE, COLUMN_GROUP, GLOBAL_SCALE = "weight_shape", "weight_g_idx", "weight_global_scale"
FLOAT_SCALES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class StoredScheme:
    """How the modules of one config group are stored.

    grid: a float grid of eight bits stands for E4M3 or E5M2, whichever dtype the file has.
    act_order: columns are assigned to groups by `weight_g_idx`.
    """

    format: str
    grid: IntGrid | FloatGrid
    layout: ScaleLayout
    act_order: bool = False


def fetch(module: str, part: str, parts: Mapping[str, Tensor]) -> Tensor:
    """A part by its short name. Raises CheckpointError if it is missing."""
    if part not in parts:
        raise CheckpointError(f"{module}: {part} is missing from the checkpoint")
    return parts[part]


def fit(module: str, part: str, stored: Tensor, layout: ScaleLayout, shape: tuple[int, int]) -> Tensor:
    """A scale or zero point as [down, across] for a weight [out, in]; raises CheckpointError if it is not."""
    try:
        expected = scale_shape(layout, shape)
    except ValueError as error:
        raise CheckpointError(f"{module}: {error}") from error
    found = tuple(stored.shape)
    per_tensor = isinstance(layout, PerTensor) and stored.numel() == 1
    per_row = isinstance(layout, PerChannel) and found == expected[:1]
    if not (per_tensor or per_row or found == expected):
        name = part.removeprefix("weight_").replace("_", " ")
        raise CheckpointError(f"{module}: {name} of shape {found}, {layout} of {shape} needs {expected}")
    return stored.reshape(expected)


def column_group(
    module: str, scheme: StoredScheme, parts: Mapping[str, Tensor], columns: int
) -> Tensor | None:
    """The group of each column, int64 [in]; None where groups are runs of columns.

    Upstream sorts the columns by group and cuts them in runs of the group size, which means the same only
    where every group has that many columns; anything else is refused. A file of only -1 is upstream's
    "not reordered".
    """
    stored = parts.get(COLUMN_GROUP)
    if not scheme.act_order:
        if stored is not None:
            raise CheckpointError(
                f"{module}: {COLUMN_GROUP} is stored, but its config group does not say actorder 'group'; "
                "columns cannot be assigned to groups"
            )
        return None
    if stored is None:
        raise CheckpointError(
            f"{module}: {COLUMN_GROUP} is missing, which actorder 'group' needs; the order of columns is lost"
        )
    if stored.shape != (columns,) or stored.dtype not in (torch.int32, torch.int64):
        raise CheckpointError(
            f"{module}: {COLUMN_GROUP} is {stored.dtype} {tuple(stored.shape)}; expected int32 ({columns},)"
        )
    assert isinstance(scheme.layout, PerGroup)
    size, groups = scheme.layout.size, stored.to(torch.int64)
    if bool((groups == -1).all()):
        return None
    count = columns // size
    if int(groups.min()) < 0 or int(groups.max()) >= count or bool((groups.bincount() != size).any()):
        raise CheckpointError(
            f"{module}: {COLUMN_GROUP} does not give each of {count} groups {size} columns; it is damaged"
        )
    runs = torch.arange(columns) // size
    return None if torch.equal(groups, runs) else groups


def matrix(module: str, part: str, stored: Tensor, dtypes: tuple[torch.dtype, ...]) -> Tensor:
    """A stored weight of two dimensions in one of `dtypes`. Raises CheckpointError."""
    if stored.ndim != 2 or stored.dtype not in dtypes or not stored.numel():
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise CheckpointError(
            f"{module}: {part} is {stored.dtype} {tuple(stored.shape)}; expected {names} [out, in]"
        )
    return stored
