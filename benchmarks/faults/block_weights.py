"""Rounded weights that are no integer scheme, and what a fault may do to any rounded weight.

A plant asks for one change (other scales, groups moved along) and does not care how a format lays out its
numbers: k-quants scale a block's minimum with its scale, NF4 keeps one magnitude for each run of the
flattened weight.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantriage.formats.bitsandbytes_4bit import TABLES
from quantriage.formats.gguf_blocks import BlockFields, block_values
from quantriage.formats.gguf_encode import search_fields
from quantriage.formats.gguf_layouts import LAYOUTS
from quantriage.numerics.qparams import QParams
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.rounding import quantize

NF4_BLOCK = 64
_ZERO_POINT = 7  # NF4's code of zero


@dataclass(frozen=True, eq=False)
class BlockWeight:
    """A weight of `shape` [out, in] in blocks of a GGUF type."""

    kind: str
    shape: tuple[int, int]
    fields: BlockFields

    @staticmethod
    def of(weight: Tensor, kind: str) -> "BlockWeight":
        """Rounded with the scales of least squared error."""
        rows, columns = weight.shape
        return BlockWeight(kind, (rows, columns), search_fields(kind, weight))

    def dequantize(self) -> Tensor:
        """float32 [out, in]."""
        f = self.fields
        return block_values(self.kind, f.codes, f.scale, f.offset).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class NormalFloat:
    """NF4. codes: uint8 [out, in]; magnitudes: float32 [blocks] of the flattened weight."""

    codes: Tensor
    magnitudes: Tensor

    @staticmethod
    def of(weight: Tensor, magnitudes: Tensor | None = None) -> "NormalFloat":
        """The nearest codes, under the largest magnitude of each block or those given."""
        blocks = weight.reshape(-1, NF4_BLOCK)
        largest = blocks.abs().amax(1) if magnitudes is None else magnitudes
        steps = blocks / largest.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
        table = torch.tensor(TABLES["nf4"])
        codes = torch.bucketize(steps, (table[1:] + table[:-1]) / 2).to(torch.uint8)
        return NormalFloat(codes.reshape(weight.shape), largest)

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in]."""
        rows, columns = self.codes.shape
        return rows, columns

    def dequantize(self) -> Tensor:
        """float32 [out, in]."""
        points = torch.tensor(TABLES["nf4"])[self.codes.to(torch.int64)].reshape(-1, NF4_BLOCK)
        return (points * self.magnitudes.unsqueeze(1)).reshape(self.shape)


Rounded = QuantizedTensor | BlockWeight | NormalFloat


def scale_of(weight: Rounded) -> Tensor:
    """Scales [out, groups]; of k-quants the blocks' own; of NF4 those of its blocks, as one row."""
    if isinstance(weight, QuantizedTensor):
        return weight.scale
    if isinstance(weight, NormalFloat):
        return weight.magnitudes.unsqueeze(0)
    return weight.fields.d.reshape(weight.shape[0], -1)


def with_scale(weight: Rounded, scale: Tensor) -> Rounded:
    """Other scales in the shape of `scale_of`; a block's minimum follows its scale."""
    if isinstance(weight, QuantizedTensor):
        return replace(weight, scale=scale)
    if isinstance(weight, NormalFloat):
        return replace(weight, magnitudes=scale.reshape(-1))
    old, new = weight.fields.d, scale.reshape(-1, 1)
    dmin = weight.fields.dmin
    if dmin is not None:
        dmin = torch.where(old != 0, dmin * (new / old), dmin)
    return replace(weight, fields=replace(weight.fields, d=new, dmin=dmin))


def unfilled(weight: Rounded) -> Rounded:
    """One code everywhere."""
    if isinstance(weight, QuantizedTensor):
        return replace(weight, codes=torch.full_like(weight.codes, weight.scheme.grid.center))
    if isinstance(weight, NormalFloat):
        return replace(weight, codes=torch.full_like(weight.codes, _ZERO_POINT))
    codes = torch.full_like(weight.fields.codes, LAYOUTS[weight.kind].levels // 2)
    return replace(weight, fields=replace(weight.fields, codes=codes))


def scrambled(weight: Rounded, share: float, drawn: torch.Generator) -> Rounded:
    """A part of the codes replaced by random ones, as damaged bits leave them."""

    def change(codes: Tensor, levels: int) -> Tensor:
        hit = torch.rand(codes.shape, generator=drawn) < share
        random = torch.randint(0, levels, codes.shape, generator=drawn, dtype=torch.uint8)
        return torch.where(hit, random, codes)

    if isinstance(weight, QuantizedTensor):
        return replace(weight, codes=change(weight.codes, weight.scheme.grid.levels))
    if isinstance(weight, NormalFloat):
        return replace(weight, codes=change(weight.codes, 16))
    fields = weight.fields
    return replace(weight, fields=replace(fields, codes=change(fields.codes, LAYOUTS[weight.kind].levels)))


def tightened(weight: Rounded, reference: Tensor, factor: float) -> Rounded:
    """The reference rounded anew with all scales `factor` times as large."""
    if isinstance(weight, QuantizedTensor):
        return quantize(reference, weight.scheme, QParams(weight.scale * factor, weight.zero_point))
    if isinstance(weight, NormalFloat):
        return NormalFloat.of(reference, weight.magnitudes * factor)
    smaller = with_scale(weight, scale_of(weight) * factor)
    assert isinstance(smaller, BlockWeight)
    f, layout = smaller.fields, LAYOUTS[weight.kind]
    blocks = reference.reshape(len(f.codes), -1, layout.sub)
    steps = blocks if f.offset is None else blocks - f.offset.unsqueeze(-1)
    steps = torch.where(f.scale.unsqueeze(-1) != 0, steps / f.scale.unsqueeze(-1), 0.0) + (layout.zero or 0)
    codes = steps.round().clamp(0, layout.levels - 1).to(torch.uint8).reshape(f.codes.shape)
    return replace(smaller, fields=replace(f, codes=codes))


def shifted(weight: Rounded) -> Rounded:
    """Every group with the scale and the minimum of the one before it: in its row, in k-quants its block."""
    if isinstance(weight, QuantizedTensor):
        zero = None if weight.zero_point is None else weight.zero_point.roll(1, 1)
        return replace(weight, scale=weight.scale.roll(1, 1), zero_point=zero)
    if isinstance(weight, NormalFloat):
        return replace(weight, magnitudes=weight.magnitudes.roll(1))
    f = weight.fields
    if f.sub_scale is None:
        rows = weight.shape[0]
        return replace(
            weight, fields=replace(f, d=f.d.reshape(rows, -1).roll(1, 1).reshape(-1, 1), dmin=f.dmin)
        )
    minima = None if f.sub_min is None else f.sub_min.roll(1, 1)
    return replace(weight, fields=replace(f, sub_scale=f.sub_scale.roll(1, 1), sub_min=minima))


def exchanged(one: Rounded, other: Rounded) -> tuple[Rounded, Rounded]:
    """Both with each other's scales, zero points and minima."""
    match one, other:
        case QuantizedTensor(), QuantizedTensor():
            return (
                replace(one, scale=other.scale, zero_point=other.zero_point),
                replace(other, scale=one.scale, zero_point=one.zero_point),
            )
        case NormalFloat(), NormalFloat():
            return (
                replace(one, magnitudes=other.magnitudes),
                replace(other, magnitudes=one.magnitudes),
            )
        case BlockWeight(), BlockWeight():
            first, second = one.fields, other.fields
            return (
                replace(one, fields=replace(second, codes=first.codes)),
                replace(other, fields=replace(first, codes=second.codes)),
            )
    raise AssertionError("two weights of one format")
