"""Weights to GGUF block types: scales and minima searched, then codes by error feedback over all columns.

Scales and minima of every block are searched on the original weight, each column weighed by its pivot, as for
integers. They then stay, so columns may be visited in any order and an error reaches columns of any block. A
minimum is taken off the weight beforehand: codes are then a grid from zero, and the errors are the same. Two
sweeps of `refinement` follow; types of one level have their scales refitted in them, in the others a
scale is shared through the block's integers and stays as searched.

llama.cpp rounds each block by itself, with columns weighed by their mean square (its imatrix). Row by row the
best of feedback, weighed search and plain search is kept, so no row is worse than rounding block by block.
Where the loss's gradients at the outputs are known, rows go panel by panel (row_coupling.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.formats.gguf_blocks import BlockFields, write_fields
from quantriage.formats.gguf_encode import search_fields
from quantriage.formats.gguf_layouts import LAYOUTS
from quantriage.formats.gguf_search import Points
from quantriage.methods.error_feedback import feed_back_errors
from quantriage.methods.hessian_factor import HessianFactor, factorize
from quantriage.methods.inspection import inspect_inputs
from quantriage.methods.lanes import LaneGrid
from quantriage.methods.objective import loss_error, quadratic, share
from quantriage.methods.protocol import MethodFinding, SiteStatistics
from quantriage.methods.refinement import refine
from quantriage.methods.row_coupling import PANELS, RowCoupling, by_panels
from quantriage.numerics.block_tensor import BlockTensor
from quantriage.numerics.schemes import ScaleDtype, Scheme

_DAMPING = 0.01  # of the mean diagonal, as for integers
_SWEEPS = 2
_BLOCK = 1 << 22  # values of one block of rows: 16 MB of float32
_SMALLEST = 1e-30  # stands for a scale of zero, under which every code means nothing


@dataclass(frozen=True, eq=False)
class BlockResult:
    """One weight in one type; `damping` and `objective` as in MethodResult.

    plain_objective: that of the plain search, block by block with all columns alike.
    """

    quantized: BlockTensor
    damping: float
    objective: float
    plain_objective: float
    findings: tuple[MethodFinding, ...] = ()


def nearest_blocks(weight: Tensor, scheme: Scheme) -> BlockTensor:
    """Each block by itself, all columns alike: what stands for plain rounding in these types."""
    fields = search_fields(str(scheme), weight)
    return _tensor(scheme, fields, len(weight))


def plain_blocks(
    weights: Sequence[Tensor], statistics: SiteStatistics, schemes: Sequence[Scheme]
) -> tuple[tuple[BlockResult, ...], ...]:
    """`nearest_blocks` for several weights [out_k, in] of one input: for every weight, all types."""
    inspect_inputs(weights, statistics, schemes)
    found = []
    for weight in weights:
        total = loss_error(weight, statistics.hessian, ())
        of_weight = []
        for scheme in schemes:
            rounded = nearest_blocks(weight, scheme)
            cost = share(loss_error(rounded.dequantize().sub_(weight), statistics.hessian, ()), total)
            of_weight.append(BlockResult(rounded, 0.0, cost, cost))
        found.append(tuple(of_weight))
    return tuple(found)


def round_blocks(
    weights: Sequence[Tensor], statistics: SiteStatistics, schemes: Sequence[Scheme]
) -> tuple[tuple[BlockResult, ...], ...]:
    """Several weights [out_k, in], float32, of one input: for every weight, all types.

    Memory: two copies of the Hessian, six of the stacked weights. Raises what `inspect_inputs` does.
    """
    inspect_inputs(weights, statistics, schemes)
    if not weights or not schemes:
        return tuple(() for _ in weights)
    hessian = statistics.hessian
    factor = factorize(hessian, hessian.diagonal().argsort(stable=True), _DAMPING)
    couplings = [RowCoupling(moments, PANELS) for moments in statistics.outputs]
    moments = [statistics.outputs_of(i) for i in range(len(weights))]
    totals = [loss_error(w, hessian, own) for w, own in zip(weights, moments, strict=True)]
    found: list[list[BlockResult]] = [[] for _ in weights]
    for scheme in schemes:
        rounded = _in_panels(weights, scheme, factor, hessian, couplings)
        for i, (weight, pair) in enumerate(zip(weights, rounded, strict=True)):
            ours, plain = (
                share(loss_error(one.dequantize().sub_(weight), hessian, moments[i]), totals[i])
                for one in pair
            )
            found[i].append(BlockResult(pair[0], factor.damping, ours, plain, _findings(factor)))
    return tuple(tuple(own) for own in found)


def _in_panels(
    weights: Sequence[Tensor],
    scheme: Scheme,
    factor: HessianFactor,
    hessian: Tensor,
    couplings: Sequence[RowCoupling],
) -> list[tuple[BlockTensor, BlockTensor]]:
    """Every weight at its best and plainly; all rows side by side, or by panels where they are coupled."""
    if not couplings:
        return _best_rows(weights, scheme, factor, hessian)
    (pieces,) = by_panels(
        weights,
        couplings,
        1,
        lambda targets: [[best for best, _ in _best_rows(targets[0], scheme, factor, hessian)]],
        BlockTensor.dequantize,
    )
    return [
        (
            BlockTensor(scheme, torch.cat([piece.raw for piece in own])[coupling.places]),
            nearest_blocks(weight, scheme),
        )
        for weight, coupling, own in zip(weights, couplings, pieces, strict=True)
    ]


def _best_rows(
    weights: Sequence[Tensor], scheme: Scheme, factor: HessianFactor, hessian: Tensor
) -> list[tuple[BlockTensor, BlockTensor]]:
    """The best of three ways for each row of the weights [out_k, in], and the plain one."""
    weight = torch.cat(list(weights))
    plain = nearest_blocks(weight, scheme)
    plain_errors = _errors(weight, plain, hessian)
    fields = search_fields(str(scheme), weight, factor.pivots)
    best = _tensor(scheme, fed_back(weight, str(scheme), fields, factor, hessian), len(weight))
    errors = _errors(weight, best, hessian)
    searched = _tensor(scheme, fields, len(weight))
    for other, of_other in ((searched, _errors(weight, searched, hessian)), (plain, plain_errors)):
        take = of_other < errors
        best = BlockTensor(scheme, torch.where(take.unsqueeze(1), other.raw, best.raw))
        errors = torch.where(take, of_other, errors)
    parts = (torch.split(one.raw, [len(part) for part in weights]) for one in (best, plain))
    return [(BlockTensor(scheme, a.clone()), BlockTensor(scheme, b)) for a, b in zip(*parts, strict=True)]


def fed_back(
    weight: Tensor,
    kind: str,
    fields: BlockFields,
    factor: HessianFactor,
    hessian: Tensor,
    sweeps: int = _SWEEPS,
) -> BlockFields:
    """The fields with codes chosen under error feedback, and refitted scales in types of one level."""
    layout = LAYOUTS[kind]
    points = Points(layout.points)
    rows, columns = weight.shape
    scale = fields.scale.reshape(rows, -1)  # [out, in / sub]
    offset = None if fields.offset is None else fields.offset.reshape(rows, -1)
    codes = torch.empty(rows, columns, dtype=torch.uint8)
    refitted = torch.empty_like(scale)
    step = max(64, _BLOCK // columns)
    for start in range(0, rows, step):
        part = slice(start, min(rows, start + step))
        target = weight[part].T.contiguous()
        if offset is not None:
            target -= offset[part].T.repeat_interleave(layout.sub, 0)
        grid = _grid(scale[part].T, layout.sub, points)
        centred = feed_back_errors(target, factor, grid)
        dtype: ScaleDtype | None = None if layout.two_levels else "float16"
        centred, moved = refine(target, centred, grid, hessian, factor.damping_added, sweeps, dtype)
        codes[part], refitted[part] = points.codes(centred).T, moved.T
    d = fields.d if layout.two_levels else refitted.reshape(-1, 1)
    return BlockFields(codes.reshape(-1, layout.width), d, fields.dmin, fields.sub_scale, fields.sub_min)


def _grid(scale: Tensor, width: int, points: Points) -> LaneGrid:
    """Lanes with scales [in / width, rows], which may have either sign."""
    scale = torch.where(scale.abs() < _SMALLEST, _SMALLEST, scale).contiguous()
    low, high = (torch.full_like(scale, end) for end in (points.low, points.high))
    return LaneGrid(width, scale, scale.reciprocal(), low, high, None if points.even else points)


def _tensor(scheme: Scheme, fields: BlockFields, rows: int) -> BlockTensor:
    return BlockTensor(scheme, write_fields(str(scheme), fields).reshape(rows, -1))


def _errors(weight: Tensor, rounded: BlockTensor, hessian: Tensor) -> Tensor:
    return quadratic(rounded.dequantize().sub_(weight), hessian)


def _findings(factor: HessianFactor) -> tuple[MethodFinding, ...]:
    if not factor.raised:
        return ()
    text = (
        f"damping raised to {factor.damping:g} of the Hessian's mean diagonal before it could be factored: "
        "more calibration tokens help"
    )
    return (MethodFinding("warning", "damping-raised", text),)
