"""GPTQ with scales fixed beforehand: all rows of all sites under all schemes, block of rows by block.

Fixed scales are what lets columns be visited in any order and still be stored in the natural one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.methods.error_feedback import feed_back_errors
from quantriage.methods.hessian_factor import HessianFactor
from quantriage.methods.lanes import lane_grid
from quantriage.methods.refinement import refine
from quantriage.numerics.qparams import SCALE_DTYPES, QParams
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import PerTensor, ScaleDtype, Scheme

_BLOCK = 1 << 22  # values of one block of lanes: 16 MB of float32


@dataclass(frozen=True)
class Refinement:
    """Sweeps of `refine` after the feedback, with the Hessian [in, in] and its absolute damping."""

    hessian: Tensor
    damping: float
    sweeps: int


def round_with_fixed_scales(
    weights: Sequence[Sequence[Tensor]],
    factor: HessianFactor,
    schemes: Sequence[Scheme],
    qparams: Sequence[Sequence[QParams]],
    refinement: Refinement,
) -> list[list[QuantizedTensor]]:
    """Quantized weights by scheme and site, for weights[scheme][site] [out_k, in] and qparams[scheme][site].

    Memory: the stacked weights, a byte per code and scheme, about eight blocks of `_BLOCK` floats.
    """
    columns, counts = weights[0][0].shape[1], [weight.shape[0] for weight in weights[0]]
    stacked = [torch.cat([weight.T for weight in own], 1) for own in weights]  # [in, rows] each
    grid = lane_grid(columns, schemes, qparams, counts)
    count = sum(counts)
    codes = torch.empty(len(schemes), count, columns, dtype=torch.uint8)
    scales = [torch.empty(count, columns // scheme.group_width(columns)) for scheme in schemes]
    step = max(64, _BLOCK // (columns * len(schemes)))
    for start in range(0, count, step):
        rows = slice(start, min(count, start + step))
        part = grid.rows(rows.start, rows.stop, len(schemes))
        targets = torch.stack([of_scheme[:, rows] for of_scheme in stacked], 1)  # [in, schemes, lanes]
        centred = feed_back_errors(targets.flatten(1), factor, part).view(targets.shape)
        for (width, rescale), alike in _alike(columns, schemes).items():
            grid_of = part.schemes(alike, len(schemes), width)
            own, found = targets[:, alike].flatten(1), centred[:, alike].flatten(1)
            found, scale = refine(
                own, found, grid_of, refinement.hessian, refinement.damping, refinement.sweeps, rescale
            )
            unsigned = grid_of.unsigned(found).view(columns, len(alike), -1)
            fitted = scale.view(len(scale), len(alike), -1)
            for place, index in enumerate(alike):
                codes[index, rows], scales[index][rows] = unsigned[:, place].T, fitted[:, place].T
    return [
        _by_site(scheme, of_codes, of_scales, of_sites, counts)
        for scheme, of_codes, of_scales, of_sites in zip(schemes, codes, scales, qparams, strict=True)
    ]


def _alike(columns: int, schemes: Sequence[Scheme]) -> dict[tuple[int, ScaleDtype | None], list[int]]:
    """Schemes, by place, that are refined side by side: by group width and the dtype that scales move in."""
    found: dict[tuple[int, ScaleDtype | None], list[int]] = {}
    for index, scheme in enumerate(schemes):
        # One scale that serves all rows cannot move for one of them.
        rescale = None if isinstance(scheme.granularity, PerTensor) else scheme.scale_dtype
        found.setdefault((scheme.group_width(columns), rescale), []).append(index)
    return found


def _by_site(
    scheme: Scheme, codes: Tensor, scale: Tensor, qparams: Sequence[QParams], counts: list[int]
) -> list[QuantizedTensor]:
    """Split codes [rows, in] and scale [rows, groups] of one scheme into its sites."""
    quantized = []
    parts = zip(torch.split(codes, counts), torch.split(scale, counts), qparams, strict=True)
    for own_codes, own_scale, found in parts:
        if isinstance(scheme.granularity, PerTensor):
            stored = found.scale
        else:
            stored = own_scale.to(SCALE_DTYPES[scheme.scale_dtype]).contiguous()
        quantized.append(QuantizedTensor(scheme, own_codes.contiguous(), stored, found.zero_point))
    return quantized
