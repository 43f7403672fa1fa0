"""What is wrong with one unquantized tensor: not finite, or never filled."""

import torch
from torch import Tensor

from quantriage.diagnose.lint.catalogue import finding
from quantriage.records.diagnosis import LintFinding

_FLOAT16_MAX = 65504.0


def check_dense(name: str, tensor: Tensor) -> list[LintFinding]:
    """Values that are NaN or infinite; matrices or experts of zeros. Memory: one boolean a value."""
    if not tensor.is_floating_point() or not tensor.numel():
        return []
    low, high = (float(v) for v in tensor.aminmax())
    if not (low == low and abs(low) != float("inf") and abs(high) != float("inf")):
        bad = int((~torch.isfinite(tensor)).sum())
        kind = "NaN" if low != low else "infinite"
        overflowed = tensor.dtype == torch.float16 and kind == "infinite"
        code = "fp16-overflow" if overflowed else "nonfinite-values"
        return [finding(code, name, f"{bad} of {tensor.numel()} values are {kind} ({_word(tensor)})")]
    if low == high == 0.0 and tensor.ndim > 1:
        return [finding("zero-tensor", name, f"all {tensor.numel()} values are 0")]
    if tensor.ndim == 3:
        empty = [i for i in range(tensor.shape[0]) if not bool(tensor[i].any())]
        if empty:
            listed = ", ".join(map(str, empty[:5]))
            return [finding("zero-expert", name, f"all values of expert {listed} are 0")]
    return []


def overflows_float16(name: str, reference: Tensor, candidate: Tensor) -> LintFinding | None:
    """A reference that float16 cannot hold, stored in float16."""
    if candidate.dtype != torch.float16 or reference.dtype == torch.float16:
        return None
    low, high = (float(v) for v in reference.aminmax())
    largest = max(-low, high)
    if not largest > _FLOAT16_MAX:
        return None
    return finding(
        "fp16-overflow", name, f"the reference reaches {largest:.3g}, float16 ends at {_FLOAT16_MAX:.0f}"
    )


def _word(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
