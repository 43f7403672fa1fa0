"""The parts of GGUF blocks: bytes to codes, scales and minima, and back.

`read_fields` and `write_fields` are inverses for every type in LAYOUTS. The values of the fields are
gguf-py's own dequantization bit for bit, because the same float32 products are formed in the same order.

Sign of the offset: a value is `scale * point + offset` for all types. k-quants store a minimum that is
*subtracted*; it is negated here, which changes no bit of the result. Q4_1 and Q5_1 store the offset itself.
Scales may be negative: Q4_0 to Q6_K take the sign of the largest weight, so a sign alone is no fault.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quantriage.checkpoint.gguf_file import GGUFSource
from quantriage.formats.gguf_layouts import BLOCK_SCALE_AT, LAYOUTS, BlockLayout, Plane
from quantriage.numerics.stored_weight import StoredWeight

_CHUNK = 1 << 20  # weights whose fields are taken apart at once: temporaries stay below 32 MB


@dataclass(frozen=True, eq=False)
class BlockFields:
    """What n blocks store. codes: uint8 [n, width]. d: float32 [n, 1] (NVFP4: [n, 4]), exact in its type.
    dmin: float32 [n, 1]. sub_scale, sub_min: int16 [n, sub-blocks], or None in types of one level.
    """

    codes: Tensor
    d: Tensor
    dmin: Tensor | None = None
    sub_scale: Tensor | None = None
    sub_min: Tensor | None = None

    @property
    def scale(self) -> Tensor:
        """Effective scales [n, sub-blocks]."""
        return self.d if self.sub_scale is None else self.d * self.sub_scale.to(torch.float32)

    @property
    def offset(self) -> Tensor | None:
        """What is added to `scale * point`, [n, sub-blocks]."""
        if self.dmin is None or self.sub_min is None:
            return self.dmin
        return -(self.dmin * self.sub_min.to(torch.float32))


def read_fields(kind: str, raw: Tensor) -> BlockFields:
    """Take blocks [n, nbytes] apart. Memory: a few times the codes."""
    layout = LAYOUTS[kind]
    codes = _read_planes(raw, layout.planes, layout.width)
    codes = codes ^ layout.flip if layout.flip else codes
    dmin = None if layout.dmin_at is None else _half(raw, layout.dmin_at)
    scales, minima = _read_scales(raw, layout)
    return BlockFields(codes, _read_d(raw, layout), dmin, scales, minima)


def write_fields(kind: str, fields: BlockFields) -> Tensor:
    """Blocks [n, nbytes] of the fields; the inverse of `read_fields`."""
    layout = LAYOUTS[kind]
    raw = torch.zeros(len(fields.codes), layout.nbytes, dtype=torch.uint8)
    _write_planes(raw, layout.planes, fields.codes ^ layout.flip if layout.flip else fields.codes)
    _write_d(raw, layout, fields.d)
    if layout.dmin_at is not None:
        assert fields.dmin is not None
        raw[:, layout.dmin_at : layout.dmin_at + 2] = fields.dmin.to(torch.float16).view(torch.uint8)
    if layout.two_levels:
        assert fields.sub_scale is not None
        scales = (fields.sub_scale + layout.scale_zero).to(torch.uint8)
        minima = None if fields.sub_min is None else fields.sub_min.to(torch.uint8)
        if layout.pairs_at is not None:
            assert minima is not None
            raw[:, layout.pairs_at : layout.pairs_at + 12] = _join_pairs(scales, minima)
        else:
            both = scales if minima is None else torch.cat((scales, minima), dim=1)
            _write_planes(raw, layout.scale_planes, _signed(both, layout))
    return raw


def block_values(kind: str, codes: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """float32 values of codes [n, columns] with scales and offsets [n, sub-blocks]."""
    layout = LAYOUTS[kind]
    points = torch.tensor(layout.points, dtype=torch.float32)[codes.to(torch.int32)]
    values = points.reshape(len(codes), -1, layout.sub) * scale.unsqueeze(-1)
    if offset is not None:
        values += offset.unsqueeze(-1)
    return values.reshape(codes.shape)


def stored_blocks(source: GGUFSource, name: str) -> StoredWeight | None:
    """A GGUF tensor as stored, [rows, in], rows in the file's order; None for a plain type.

    Experts stacked in three dimensions count as rows. Where codes is None, scale holds the blocks' own
    scales, which in those types a few more bits of each sub-block multiply. Peak memory: the codes, the
    scales and 32 MB.
    """
    meta = source.meta(name)
    kind = meta.dtype
    if kind not in LAYOUTS and kind not in BLOCK_SCALE_AT:
        return None
    raw = torch.from_numpy(source.raw_rows(name))  # [rows, bytes of a row]
    shape = (len(raw), meta.shape[-1])
    if kind in BLOCK_SCALE_AT:
        at, levels = BLOCK_SCALE_AT[kind]
        blocks = raw.reshape(shape[0], shape[1] // 256, -1)
        scale = None if at is None else _half(blocks.reshape(-1, blocks.shape[-1]), at).reshape(shape[0], -1)
        return StoredWeight(kind, shape, levels, meta.nbytes, None, scale, "float16")
    layout = LAYOUTS[kind]
    codes = torch.empty(shape, dtype=torch.uint8)
    scale = torch.empty(shape[0], shape[1] // layout.sub)
    offset = None if layout.dmin_at is None else torch.empty_like(scale)
    step = max(1, _CHUNK // shape[1])
    for start in range(0, shape[0], step):
        rows = slice(start, min(shape[0], start + step))
        fields = read_fields(kind, raw[rows].reshape(-1, layout.nbytes))
        codes[rows] = fields.codes.reshape(-1, shape[1])
        scale[rows] = fields.scale.reshape(-1, scale.shape[1])
        if offset is not None:
            assert fields.offset is not None
            offset[rows] = fields.offset.reshape(-1, scale.shape[1])
    zero = None if layout.zero is None else torch.tensor(layout.zero, dtype=torch.uint8).expand(scale.shape)
    dtype = "float16" if layout.d_type == "float16" else layout.d_type
    points = None if layout.table is None else torch.tensor(layout.table, dtype=torch.float32)
    return StoredWeight(
        kind, shape, layout.levels, meta.nbytes, codes, scale, dtype, zero, offset, points=points
    )


def _read_planes(raw: Tensor, planes: tuple[Plane, ...], count: int) -> Tensor:
    """Bit fields of all planes joined, uint8 [n, count]."""
    joined = torch.zeros(len(raw), count, dtype=torch.uint8)
    for plane in planes:
        part = raw[:, plane.at : plane.at + plane.length].reshape(len(raw), -1, 1, plane.run)
        shifts = torch.arange(0, 8, plane.bits, dtype=torch.uint8).reshape(1, 1, -1, 1)
        fields = (part >> shifts) & ((1 << plane.bits) - 1)
        joined |= fields.reshape(len(raw), count) << plane.up
    return joined


def _write_planes(raw: Tensor, planes: tuple[Plane, ...], values: Tensor) -> None:
    """Put values uint8 [n, count] into the planes of raw [n, nbytes]."""
    for plane in planes:
        fields = (values >> plane.up) & ((1 << plane.bits) - 1)
        fields = fields.reshape(len(raw), -1, 8 // plane.bits, plane.run)
        shifts = torch.arange(0, 8, plane.bits, dtype=torch.uint8).reshape(1, 1, -1, 1)
        part = (fields << shifts).sum(dim=2, dtype=torch.uint8)
        raw[:, plane.at : plane.at + plane.length] = part.reshape(len(raw), -1)


def _read_scales(raw: Tensor, layout: BlockLayout) -> tuple[Tensor | None, Tensor | None]:
    """Integers of the sub-blocks: scales without their zero, and minima if there are any. int16 [n, subs]."""
    if not layout.two_levels:
        return None, None
    subs = layout.width // layout.sub
    if layout.pairs_at is not None:
        scales, minima = _split_pairs(raw[:, layout.pairs_at : layout.pairs_at + 12])
        return scales.to(torch.int16), minima.to(torch.int16)
    both = _signed(
        _read_planes(raw, layout.scale_planes, subs * (2 if layout.dmin_at is not None else 1)), layout
    ).to(torch.int16)
    return both[:, :subs] - layout.scale_zero, both[:, subs:] if layout.dmin_at is not None else None


def _signed(scales: Tensor, layout: BlockLayout) -> Tensor:
    """Q6_K stores its scales as signed bytes: their top bit is inverted to count from the lowest."""
    return scales ^ 0x80 if layout.scale_levels == 256 else scales


def _split_pairs(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Eight six-bit scales and eight six-bit minima from 12 bytes: the last four of each give their upper
    two bits to the first eight bytes and their lower four to the last four.
    """
    first, second, low = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    scales = torch.cat((first & 63, (low & 15) | ((first >> 2) & 48)), dim=1)
    return scales, torch.cat((second & 63, (low >> 4) | ((second >> 2) & 48)), dim=1)


def _join_pairs(scales: Tensor, minima: Tensor) -> Tensor:
    """The inverse of `_split_pairs`: uint8 [n, 8] twice to [n, 12]."""
    first = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    second = minima[:, :4] | ((minima[:, 4:] >> 4) << 6)
    return torch.cat((first, second, (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)), dim=1)


def _half(raw: Tensor, at: int) -> Tensor:
    """float16 at a byte position, as float32 [n, 1]."""
    return raw[:, at : at + 2].contiguous().view(torch.float16).to(torch.float32)


def _read_d(raw: Tensor, layout: BlockLayout) -> Tensor:
    """The block's own scales."""
    if layout.d_type == "float16":
        return _half(raw, layout.d_at)
    if layout.d_type == "e8m0":
        return E8M0[raw[:, layout.d_at : layout.d_at + 1].to(torch.int32)]
    return _UE4M3[raw[:, layout.d_at : layout.d_at + 4].to(torch.int32)]


def _write_d(raw: Tensor, layout: BlockLayout, d: Tensor) -> None:
    """The inverse of `_read_d`, for scales that their type holds exactly."""
    if layout.d_type == "float16":
        raw[:, layout.d_at : layout.d_at + 2] = d.to(torch.float16).view(torch.uint8)
    else:
        table = E8M0 if layout.d_type == "e8m0" else _UE4M3[:127]
        raw[:, layout.d_at : layout.d_at + d.shape[1]] = torch.searchsorted(table, d).to(torch.uint8)


# Halves of powers of two, for the doubled FP4 points; the lowest two are subnormal in float32
E8M0 = torch.from_numpy(np.ldexp(np.float32(1), np.arange(256) - 128).astype(np.float32))


def _unsigned_e4m3() -> Tensor:
    """Halves of the 256 bytes as unsigned E4M3: gguf-py ignores the sign bit and reads 0x7F as zero."""
    byte = np.arange(256)
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    value = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), np.ldexp(1 + mantissa / 8, exponent - 7))
    return torch.from_numpy(np.where(byte == 127, 0, value / 2).astype(np.float32))


_UE4M3 = _unsigned_e4m3()
