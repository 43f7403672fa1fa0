"""What every registered method promises; a new entry is tested by existing."""

import itertools

import pytest
import torch
from textbook_gptq import correlated_hessian, objective, random_weight

from quantriage.methods.protocol import SiteStatistics
from quantriage.methods.registry import METHODS
from quantriage.methods.rtn import Rtn
from quantriage.numerics.qparams import SCALE_DTYPES
from quantriage.numerics.schemes import IntGrid, PerChannel, PerGroup, PerTensor, ScaleDtype, Scheme

GRIDS = [IntGrid(bits, symmetric) for bits, symmetric in itertools.product(range(2, 9), (True, False))]
GRANULARITIES = [PerTensor(), PerChannel(), PerGroup(16)]
DTYPES: list[ScaleDtype] = ["float16", "bfloat16"]

pytestmark = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def same(first, second) -> None:
    assert first.quantized.scheme == second.quantized.scheme
    assert torch.equal(first.quantized.codes, second.quantized.codes)
    assert torch.equal(first.quantized.scale, second.quantized.scale)
    zero_points = first.quantized.zero_point, second.quantized.zero_point
    assert (zero_points[0] is None) == (zero_points[1] is None)
    if zero_points[0] is not None:
        assert torch.equal(*zero_points)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_keeps_shape_and_scheme_repeats_itself_and_beats_nearest(method, grid, granularity, dtype):
    scheme = Scheme(grid, granularity, dtype)
    weight, hessian = random_weight(1, 12, 48), correlated_hessian(2, 48)
    statistics = SiteStatistics(hessian, 192)
    result = method.quantize(weight, statistics, [scheme])[0]
    assert result.quantized.scheme == scheme
    assert result.quantized.shape == (12, 48)
    assert result.quantized.codes.is_contiguous()
    assert int(result.quantized.codes.max()) < grid.levels
    assert result.quantized.scale.dtype == SCALE_DTYPES[dtype]
    assert (result.quantized.zero_point is None) == grid.symmetric
    same(result, method.quantize(weight, statistics, [scheme])[0])
    # float32 sums of 48 x 48 products of one sign
    true = objective(weight, result.quantized.dequantize(), hessian)
    assert result.objective == pytest.approx(true, rel=1e-3)
    nearest = Rtn().quantize(weight, statistics, [scheme])[0].quantized.dequantize()
    assert true <= objective(weight, nearest, hessian) * (1 + 1e-4)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(16)], ids=str)
def test_weight_on_the_grid_is_unchanged(method, grid, granularity):
    scheme = Scheme(grid, granularity)
    generator = torch.Generator().manual_seed(grid.bits)
    groups = 3 if isinstance(granularity, PerGroup) else 1
    scale = (torch.rand(12, groups, generator=generator) * 0.1 + 0.01).half().float()
    codes = torch.randint(0, grid.levels, (12, 48), generator=generator)
    codes[:, ::16], codes[:, 1::16] = 0, grid.levels - 1
    weight = (codes - (grid.center if grid.symmetric else 1)) * scale.repeat_interleave(48 // groups, 1)
    result = method.quantize(weight, SiteStatistics(correlated_hessian(3, 48), 192), [scheme])[0]
    assert torch.equal(result.quantized.dequantize(), weight)
    assert result.objective == 0.0


SCHEMES = [Scheme.parse(name) for name in ("w4a-g16", "w2s-g48", "w8s-channel", "w3a-tensor", "w5a-g8")]


def test_several_schemes_at_once_equal_one_at_a_time(method):
    weight, statistics = random_weight(4, 16, 48), SiteStatistics(correlated_hessian(5, 48), 192)
    together = method.quantize(weight, statistics, SCHEMES)
    for scheme, result in zip(SCHEMES, together, strict=True):
        same(result, method.quantize(weight, statistics, [scheme])[0])


def test_several_weights_at_once_equal_one_at_a_time(method):
    statistics = SiteStatistics(correlated_hessian(6, 48), 192)
    weights = [random_weight(7 + rows, rows, 48) for rows in (16, 1, 32)]
    together = method.quantize_many(weights, statistics, SCHEMES)
    for weight, results in zip(weights, together, strict=True):
        for one, other in zip(results, method.quantize(weight, statistics, SCHEMES), strict=True):
            same(one, other)


def test_nothing_asked_is_nothing_done(method):
    statistics = SiteStatistics(correlated_hessian(6, 48), 192)
    assert method.quantize(random_weight(0, 4, 48), statistics, []) == ()
    assert method.quantize_many([], statistics, SCHEMES) == ()
