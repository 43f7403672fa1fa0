"""Codes and scales of one weight as an optimizer moves them: one form for integers and for GGUF blocks.

A weight's value is `(point(code) - zero) * scale + offset`. What moves is a latent for each code, in code
steps, which rounds to it, and the logarithm of a factor for each stored scale. Zero points, offsets, minima
and the integers that multiply a block's scale stay, so a size never changes. Where points are uneven (IQ4_NL)
a code step is the distance to the next point, so that latents of all types move alike.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantriage.formats.gguf_blocks import read_fields, write_fields
from quantriage.formats.gguf_encode import as_half
from quantriage.formats.gguf_layouts import LAYOUTS
from quantriage.numerics.block_tensor import BlockTensor
from quantriage.numerics.qparams import SCALE_DTYPES, float_zero_point
from quantriage.numerics.quantized import QuantizedTensor

Rounded = QuantizedTensor | BlockTensor

_BACK, _MOST_BACK = 0.5, 0.3  # of the way to the original weight that a latent starts; code steps
_EDGE = 0.49  # code steps beyond the first and last code
_SMALLEST = 1e-30  # a scale below says nothing about where between two codes a weight lies


class LearnedCodes:
    """One weight [out, in] in training. latent, log: what moves, their `grad` set by `differentiate`."""

    def __init__(self, original: Tensor, rounded: Rounded) -> None:
        self.rounded = rounded
        codes, parts = _of_blocks(rounded) if isinstance(rounded, BlockTensor) else _of_integers(rounded)
        self._parts = parts = parts.to(original.device)
        codes = codes.to(original.device)
        self.log = torch.zeros(parts.scale.shape[:2], device=original.device)
        scale = self._scale()
        usable = scale.abs() > _SMALLEST
        grouped = original.float().reshape(codes.shape)
        wanted = parts.place((grouped - parts.offset) / torch.where(usable, scale, 1.0) + parts.zero)
        back = (wanted - codes).mul_(_BACK).clamp_(-_MOST_BACK, _MOST_BACK)
        self.latent = codes.add_(back.mul_(usable))

    def codes(self) -> Tensor:
        """Codes, float32 [out, groups, width of a group]."""
        return self.latent.round().clamp_(0, self._parts.levels - 1)

    def value(self) -> Tensor:
        """The weight as it now is, float32 [out, in]."""
        return self._moving().add_(self._parts.offset).view(self.rounded.shape)

    @torch.no_grad()
    def differentiate(self, gradient: Tensor | None) -> None:
        """Set gradients from that at the weight, [out, in], straight through; None: no token reached it."""
        if gradient is None:
            self.latent.grad = self.log.grad = None
            return
        grouped = gradient.float().reshape(self.latent.shape)
        by_group = (grouped * self._moving()).sum(-1)
        self.log.grad = by_group.view(self._parts.scale.shape).sum(-1)
        self.latent.grad = grouped * self._scale()

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep latents at the codes that there are."""
        self.latent.clamp_(-_EDGE, self._parts.levels - 1 + _EDGE)

    def quantized(self) -> Rounded:
        """As it will be stored, on the CPU."""
        codes, factor = self.codes().to(torch.uint8).cpu(), self.log.exp().cpu()
        if isinstance(self.rounded, BlockTensor):
            kind, raw = self.rounded.kind, self.rounded.raw
            fields = read_fields(kind, raw.reshape(-1, self.rounded.scheme.block.nbytes))
            d = as_half(fields.d * factor.reshape(-1, 1))
            fields = replace(fields, codes=codes.reshape(fields.codes.shape), d=d)
            return replace(self.rounded, raw=write_fields(kind, fields).reshape(raw.shape))
        dtype = SCALE_DTYPES[self.rounded.scheme.scale_dtype]
        scale = (self.rounded.scale.float() * factor).to(dtype)
        return replace(self.rounded, codes=codes.view(self.rounded.shape), scale=scale)

    def _scale(self) -> Tensor:
        """Scales, float32 [out, groups, 1]."""
        return (self._parts.scale * self.log.exp().unsqueeze(-1)).view(self._parts.offset.shape)

    def _moving(self) -> Tensor:
        """The part of the value that scales multiply, [out, groups, width]."""
        return (self._parts.point(self.codes()) - self._parts.zero).mul_(self._scale())


@dataclass(frozen=True, eq=False)
class _Parts:
    """What codes mean. scale: of a group, [out, stored scales, groups of each].

    zero, offset: float32 [out, groups, 1]. points: of the codes, ascending; None: a code is its point.
    """

    levels: int
    scale: Tensor
    zero: Tensor
    offset: Tensor
    points: Tensor | None = None

    def to(self, device: torch.device) -> "_Parts":
        return replace(
            self,
            scale=self.scale.to(device),
            zero=self.zero.to(device),
            offset=self.offset.to(device),
            points=None if self.points is None else self.points.to(device),
        )

    def point(self, codes: Tensor) -> Tensor:
        return codes if self.points is None else self.points[codes.to(torch.int64)]

    def place(self, values: Tensor) -> Tensor:
        """Where values lie among the points, in code steps: the inverse of `point`, and lines between."""
        if self.points is None:
            return values
        below = (torch.searchsorted(self.points, values) - 1).clamp_(0, self.levels - 2)
        first, second = self.points[below], self.points[below + 1]
        return below + (values - first) / (second - first)


def _of_integers(rounded: QuantizedTensor) -> tuple[Tensor, _Parts]:
    """Codes, float32 [out, groups, width of a group], and what they mean."""
    scale = rounded.scale.float()
    zero = float_zero_point(scale, rounded.zero_point, rounded.scheme.grid).unsqueeze(-1)
    codes = rounded.codes.float().view(*scale.shape, -1)
    return codes, _Parts(rounded.scheme.grid.levels, scale.unsqueeze(-1), zero, torch.zeros_like(zero))


def _of_blocks(rounded: BlockTensor) -> tuple[Tensor, _Parts]:
    layout, rows = LAYOUTS[rounded.kind], rounded.shape[0]
    fields = read_fields(rounded.kind, rounded.raw.reshape(-1, layout.nbytes))
    codes = fields.codes.float().view(rows, -1, layout.sub)
    scale = fields.scale.view(rows, -1, layout.width // layout.sub)
    shape = (*codes.shape[:2], 1)
    offset = torch.zeros(shape) if fields.offset is None else fields.offset.reshape(shape)
    zero = torch.zeros(shape)
    if layout.table is None:
        return codes, _Parts(layout.levels, scale, zero + (layout.zero or 0), offset)
    points = torch.tensor(layout.table, dtype=torch.float32)
    return codes, _Parts(layout.levels, scale, zero, offset, points)
