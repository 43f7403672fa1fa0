"""What is wrong with the scales of one weight, seen without a reference."""

import torch
from torch import Tensor

from quantriage.diagnose.lint.catalogue import finding
from quantriage.diagnose.lint.grouping import Groups, groups_of, is_integer
from quantriage.numerics.stored_weight import StoredWeight
from quantriage.records.diagnosis import LintFinding

_FLOAT16_MAX = 65504.0
_MOSTLY_ZERO = 0.5  # of all scales; block formats store zero for blocks of zeros, so few zeros prove nothing
_SIGNED_SHARE = (0.2, 0.8)  # formats with signed scales have about half of them negative
_GGUF_PREFIXES = ("Q", "IQ", "TQ")  # the sign of a block's scale is part of these types


def nonfinite(module: str, stored: StoredWeight) -> LintFinding | None:
    """NaN or infinite scales or offsets."""
    if stored.scale is None:
        return None
    parts = [("scales", stored.scale)]
    parts += [("zero points", stored.zero_point)] if stored.zero_point is not None else []
    parts += [("offsets", stored.offset)] if stored.offset is not None else []
    for word, values in parts:
        if values.is_floating_point() and (bad := int((~torch.isfinite(values)).sum())):
            kind = "NaN" if bool(values.isnan().any()) else "infinite"
            return finding("nonfinite-scale", module, f"{bad} of {values.numel()} {word} are {kind}")
    return None


def zero(module: str, stored: StoredWeight) -> LintFinding | None:
    """Zero scales over groups whose codes differ: weights are gone. Zero over equal codes is healthy."""
    if stored.scale is None or not bool((stored.scale == 0).any()):
        return None
    share = float((stored.scale == 0).float().mean())
    signed = stored.layout.startswith(_GGUF_PREFIXES)  # its small sub-blocks have scale 0 over any codes
    groups = None if signed else groups_of(stored)
    lost = 0 if groups is None else _varied(groups, groups.scale == 0)
    if lost:
        return finding("zero-scale", module, f"{lost} groups have the scale 0 and codes that differ")
    if share > _MOSTLY_ZERO:
        return finding("zero-scale", module, f"{100 * share:.0f}% of {stored.scale.numel()} scales are 0")
    return None


def subnormal(module: str, stored: StoredWeight) -> LintFinding | None:
    """Scales below the smallest normal number of the type they are stored in."""
    dtype = getattr(torch, stored.scale_dtype, None)
    if stored.scale is None or not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        return None
    if stored.layout.startswith(_GGUF_PREFIXES) or not is_integer(stored):
        return None  # effective scales are products there: their size says nothing of what is stored
    size = stored.scale.abs()
    small = int(((size > 0) & (size < torch.finfo(dtype).tiny)).sum())
    if not small:
        return None
    return finding(
        "subnormal-scale", module, f"{small} of {size.numel()} scales are subnormal {stored.scale_dtype}"
    )


def negative(module: str, stored: StoredWeight) -> LintFinding | None:
    """Negative scales in a format that has none."""
    if stored.scale is None or stored.layout.startswith(_GGUF_PREFIXES):
        return None
    share = float((stored.scale < 0).float().mean())
    low, high = _SIGNED_SHARE
    if not share or low < share < high:
        return None
    return finding(
        "negative-scale", module, f"{100 * share:.2g}% of {stored.scale.numel()} scales are negative"
    )


def overflowing(module: str, stored: StoredWeight) -> LintFinding | None:
    """Scales whose largest code leaves the range of float16, in which most kernels dequantize."""
    groups = groups_of(stored)
    if groups is None:
        return None
    if groups.points is not None:
        steps = groups.points.abs().max()
    else:
        steps = torch.maximum(groups.zero, stored.levels - 1 - groups.zero).abs()
    reach = steps * groups.scale.abs()
    large = int((torch.isfinite(reach) & (reach > _FLOAT16_MAX)).sum())
    if not large:
        return None
    return finding("fp16-overflow", module, f"{large} groups reach beyond {_FLOAT16_MAX:.0f}")


def _varied(groups: Groups, wanted: Tensor) -> int:
    """How many of the `wanted` groups [out, groups] have codes that differ."""
    count = 0
    for row, group in wanted.nonzero()[:4096].tolist():
        codes = groups.codes[row, groups.column_group == group]
        count += bool((codes != codes[0]).any()) if codes.numel() else 0
    return count
