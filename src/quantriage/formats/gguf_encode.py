"""Weights to the bytes of GGUF block types, with the scales that cost the least weighted squared error.

gguf-py encodes the simple types by their range alone and has no encoder of k-quants; llama.cpp has them
all, as C. These are written for error first: an importance of each column (a Hessian's diagonal) steers
the search, and what gguf-py would choose is always among the candidates. Which bytes stand where is data
in `gguf_layouts`; this file chooses the numbers.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quantize
from torch import Tensor

from quantriage.errors import CheckpointError
from quantriage.formats.gguf_blocks import E8M0, BlockFields, write_fields
from quantriage.formats.gguf_kquants import encode_blocks
from quantriage.formats.gguf_layouts import LAYOUTS, BlockLayout
from quantriage.formats.gguf_search import Points, evaluate, fit_line, fit_scale, steps

Encoder = Callable[[Tensor, Tensor | None], Tensor]
"""(weight [out, in], importance of columns [in] or None) -> uint8 [out, bytes of a row]."""

_CHUNK = 1 << 17  # weights searched at once: half a megabyte of float32, so temporaries stay in cache
_LARGEST_HALF = 65504


def search_fields(kind: str, weight: Tensor, importance: Tensor | None = None) -> BlockFields:
    """Fields of all blocks of weight [out, in], row after row, for a type of LAYOUTS except NVFP4, TQ2_0.

    importance: [in], not negative; None weighs all columns alike. Memory: the codes and 8 MB.
    Raises CheckpointError for a width that is no multiple of the block and for infinite or undefined values.
    """
    layout = LAYOUTS[kind]
    rows, columns = weight.shape
    _check(kind, weight, importance)
    u = torch.ones(columns) if importance is None else importance.to(torch.float32)
    u = u / u.mean().clamp(min=torch.finfo(torch.float32).tiny)  # so that no scale of it underflows a sum
    u = u.reshape(-1, layout.width // layout.sub, layout.sub)
    step = max(1, _CHUNK // columns)
    pieces = []
    for start in range(0, rows, step):
        x = weight[start : start + step].to(torch.float32)
        blocks = x.reshape(-1, layout.width // layout.sub, layout.sub)
        pieces.append(_search(layout, blocks, u.repeat(len(x), 1, 1)))
    return _joined(kind, pieces)


def encode_search(kind: str, weight: Tensor, importance: Tensor | None) -> Tensor:
    """Bytes of a type whose scales are searched."""
    return write_fields(kind, search_fields(kind, weight, importance)).reshape(len(weight), -1)


def encode_plain(kind: str, weight: Tensor, importance: Tensor | None) -> Tensor:  # noqa: ARG001
    """Bytes of a type that leaves nothing to choose: gguf-py's own, a few rows at a time inside."""
    _check(kind, weight, None)
    if kind == "F16" and bool((weight.abs() > _LARGEST_HALF).any()):
        raise CheckpointError(f"a weight with values beyond {_LARGEST_HALF} cannot be F16; use BF16 or F32")
    raw = quantize(weight.to(torch.float32).contiguous().numpy(), GGMLQuantizationType[kind])
    return torch.from_numpy(np.ascontiguousarray(raw).view(np.uint8).reshape(len(weight), -1))


# by bits, and of equal bits by the error measured on normal weights, the closer one later
ENCODERS: dict[str, Encoder] = {
    "TQ1_0": partial(encode_plain, "TQ1_0"),
    "TQ2_0": partial(encode_plain, "TQ2_0"),
    "Q2_K": partial(encode_search, "Q2_K"),
    "Q3_K": partial(encode_search, "Q3_K"),
    "MXFP4": partial(encode_search, "MXFP4"),
    "IQ4_XS": partial(encode_search, "IQ4_XS"),
    "Q4_0": partial(encode_search, "Q4_0"),
    "IQ4_NL": partial(encode_search, "IQ4_NL"),
    "Q4_K": partial(encode_search, "Q4_K"),
    "Q4_1": partial(encode_search, "Q4_1"),
    "Q5_0": partial(encode_search, "Q5_0"),
    "Q5_K": partial(encode_search, "Q5_K"),
    "Q5_1": partial(encode_search, "Q5_1"),
    "Q6_K": partial(encode_search, "Q6_K"),
    "Q8_0": partial(encode_search, "Q8_0"),
    "BF16": partial(encode_plain, "BF16"),
    "F16": partial(encode_plain, "F16"),
    "F32": partial(encode_plain, "F32"),
}


def bits_per_weight(kind: str) -> float:
    """Stored bits per weight of a type, scales counted."""
    width, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return 8 * nbytes / width


def types_above(kind: str, columns: int) -> tuple[str, ...]:
    """Types with an encoder that store more bits than `kind` in rows of `columns`, fewest bits first.

    Of equal bits the closer one comes last.
    """
    return tuple(name for name in _ladder(columns) if bits_per_weight(name) > bits_per_weight(kind))


def smallest_not_below(bits: float, columns: int) -> str:
    """The type of fewest bits that stores at least `bits` a weight in rows of `columns`.

    Of equal bits the closer one. Raises CheckpointError above 32 bits.
    """
    fitting = [name for name in _ladder(columns) if bits_per_weight(name) >= bits]
    if not fitting:
        raise CheckpointError(f"no GGUF type stores {bits} bits a weight or more; F32 stores 32")
    return [name for name in fitting if bits_per_weight(name) == bits_per_weight(fitting[0])][-1]


def _ladder(columns: int) -> list[str]:
    """Types whose blocks divide rows of `columns`, fewest bits first, equals in the order of ENCODERS."""
    widths = {name: GGML_QUANT_SIZES[GGMLQuantizationType[name]][0] for name in ENCODERS}
    return sorted((name for name in ENCODERS if columns % widths[name] == 0), key=bits_per_weight)


def _search(layout: BlockLayout, x: Tensor, u: Tensor) -> BlockFields:
    """Fields of blocks x [n, runs, sub] with weights u of the same shape."""
    if layout.two_levels:
        return encode_blocks(x, u, layout, as_half)
    points = Points(layout.points)
    if layout.d_type == "e8m0":
        scale, offset = _power_of_two(x, u, points), None
    elif layout.dmin_at is None:
        scale, offset = fit_scale(x, u, points, as_half).scale, None
    else:
        fit = fit_line(x, u, points, as_half, below_zero=False)
        scale, offset = fit.scale, fit.offset
    return BlockFields(points.codes(steps(x, scale, offset)).flatten(1), scale, offset)


def _power_of_two(x: Tensor, u: Tensor, points: Points) -> Tensor:
    """The best of four neighbouring powers of two for FP4 points, [n, 1]."""
    largest = x.abs().amax(dim=-1)
    fitting = torch.searchsorted(E8M0, largest / points.high)  # the first power that clips nothing
    best = evaluate(x, u, points, E8M0[fitting.clamp(max=255)], None)
    for move in (-1, -2, 1):
        tried = E8M0[(fitting + move).clamp(0, 255)]
        best = best.better(evaluate(x, u, points, tried, None))
    return best.scale


def as_half(values: Tensor) -> Tensor:
    """Rounded to float16, the largest of which stands for anything larger."""
    return values.clamp(-_LARGEST_HALF, _LARGEST_HALF).to(torch.float16).to(torch.float32)


def _joined(kind: str, pieces: list[BlockFields]) -> BlockFields:
    """The fields of all chunks."""
    first = pieces[0]
    if len(pieces) == 1:
        return first

    def join(values: list[Tensor | None]) -> Tensor | None:
        present = [value for value in values if value is not None]
        return torch.cat(present) if present else None

    d = join([piece.d for piece in pieces])
    codes = join([piece.codes for piece in pieces])
    assert d is not None
    assert codes is not None, kind
    return BlockFields(
        codes,
        d,
        join([piece.dmin for piece in pieces]),
        join([piece.sub_scale for piece in pieces]),
        join([piece.sub_min for piece in pieces]),
    )


def _check(kind: str, weight: Tensor, importance: Tensor | None) -> None:
    """Refuse what cannot be encoded before any work."""
    width = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]
    if weight.ndim != 2 or weight.shape[1] % width:
        raise CheckpointError(
            f"a weight of shape {tuple(weight.shape)} cannot be {kind}: its rows must divide by {width}"
        )
    if not bool(weight.isfinite().all()):
        raise CheckpointError(f"a weight with infinite or undefined values cannot be encoded as {kind}")
    if importance is not None and (
        importance.shape != (weight.shape[1],) or not bool((importance.isfinite() & (importance >= 0)).all())
    ):
        raise CheckpointError(
            f"importance of shape {tuple(importance.shape)} does not fit {weight.shape[1]} columns, or has "
            "negative or undefined values"
        )
