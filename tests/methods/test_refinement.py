"""Sweeps over codes and scales: only downwards, and optimal in every single coordinate where they stop."""

import itertools

import pytest
import torch
from textbook_gptq import correlated_hessian, random_weight

from quantriage.methods.gptq import Gptq, GptqOptions
from quantriage.methods.hessian_factor import factorize
from quantriage.methods.lanes import LaneGrid, lane_grid
from quantriage.methods.protocol import SiteStatistics
from quantriage.methods.refinement import refine
from quantriage.numerics.choose_qparams import choose_qparams
from quantriage.numerics.min_max import MinMax
from quantriage.numerics.qparams import SCALE_DTYPES
from quantriage.numerics.rounding import quantize
from quantriage.numerics.schemes import Scheme

SCHEMES = ["w2a-g16", "w3s-g16", "w4a-channel", "w4s-g24", "w8a-g16"]


def start(scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor, LaneGrid, torch.Tensor]:
    """Weight and nearest centred codes [in, lanes], their grid, a damped Hessian."""
    weight, hessian = random_weight(1, 10, 48), correlated_hessian(2, 48)
    qparams = choose_qparams(weight, scheme, MinMax())
    quantized = quantize(weight, scheme, qparams)
    grid = lane_grid(48, [scheme], [[qparams]], [10])
    centred = (quantized.dequantize().T.reshape(-1, grid.width, 10) / grid.scale.unsqueeze(1)).round()
    return weight.T.contiguous(), centred.view(48, 10), grid, hessian


def damped_error(weight, codes, scale, width, hessian, damping) -> torch.Tensor:
    """e^T (H + damping) e of every lane, float64."""
    value = codes.double() * scale.double().repeat_interleave(width, 0)
    error = weight.double() - value
    return (error * (hessian.double() @ error)).sum(0) + damping * error.square().sum(0)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("relative", [0.0, 0.1])
def test_every_sweep_lowers_the_damped_error_of_every_lane(name, dtype, relative):
    scheme = Scheme.parse(name, dtype)
    weight, codes, grid, hessian = start(scheme)
    damping = relative * float(hessian.diagonal().mean())
    errors = []
    for sweeps in (0, 1, 2, 4):
        moved, scale = refine(weight, codes, grid, hessian, damping, sweeps, dtype)
        errors.append(damped_error(weight, moved, scale, grid.width, hessian, damping))
        assert torch.equal(scale.to(SCALE_DTYPES[dtype]).float(), scale)  # storable as it is
        low, high = (bound.repeat_interleave(grid.width, 0) for bound in (grid.low, grid.high))
        assert bool(((moved >= low) & (moved <= high)).all())
    for before, after in itertools.pairwise(errors):
        assert bool((after <= before * (1 + 1e-5)).all())  # float32 sums over 48 columns
    assert float(errors[1].sum()) < 0.9 * float(errors[0].sum())


@pytest.mark.parametrize("name", SCHEMES)
def test_at_rest_no_single_code_can_be_improved(name):
    scheme = Scheme.parse(name)
    weight, codes, grid, hessian = start(scheme)
    moved, scale = refine(weight, codes, grid, hessian, 0.0, 60, None)
    assert torch.equal(scale, grid.scale)
    rest = damped_error(weight, moved, scale, grid.width, hessian, 0.0)
    for column, step in itertools.product(range(48), (-1, 1)):
        trial = moved.clone()
        group = column // grid.width
        trial[column] = (trial[column] + step).clamp(grid.low[group], grid.high[group])
        other = damped_error(weight, trial, scale, grid.width, hessian, 0.0)
        assert bool((other >= rest * (1 - 1e-5)).all())


def test_scale_is_the_least_squares_one_given_the_codes():
    """Two columns whose codes cannot move (lower bound = upper bound): s = u^T H w / u^T H u."""
    hessian, damping = torch.tensor([[2.0, 0.5], [0.5, 1.0]]), 0.25
    weight = torch.linspace(1.0, 2.0, 10).repeat(2, 1) + torch.tensor([[0.0], [0.3]])
    codes, scale = torch.full((2, 10), 3.0), torch.full((1, 10), 0.4)
    pinned = LaneGrid(2, scale, 1 / scale, codes[:1], codes[:1])
    moved, fitted = refine(weight, codes, pinned, hessian, damping, 1, "float32")
    damped = hessian + damping * torch.eye(2)
    expected = (codes * (damped @ weight)).sum(0) / (codes * (damped @ codes)).sum(0)
    assert torch.equal(moved, codes)
    torch.testing.assert_close(fitted[0], expected)


def test_gptq_with_sweeps_beats_gptq_without():
    weight, hessian = random_weight(3, 32, 96), correlated_hessian(4, 96)
    schemes = [Scheme.parse(name) for name in ("w2a-g32", "w3s-g32", "w4a-g32", "w4a-channel")]
    statistics = SiteStatistics(hessian, 384)
    without = Gptq(GptqOptions(refine_sweeps=0)).quantize(weight, statistics, schemes)
    for plain, swept in zip(without, Gptq().quantize(weight, statistics, schemes), strict=True):
        assert swept.objective < 0.98 * plain.objective


def test_pivots_are_the_error_left_after_the_free_columns_compensate():
    """1 / (H_free^-1)_kk of column k, H_free over the columns not yet visited and k itself."""
    hessian = correlated_hessian(5, 24)
    order = hessian.diagonal().argsort(stable=True)
    factor = factorize(hessian, order, 0.01)
    damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(24)
    for position, column in enumerate(order.tolist()):
        free = order[: position + 1]  # visits run from the last position down
        inverse = torch.linalg.inv(damped[free][:, free])
        assert float(factor.pivots[column]) == pytest.approx(float(1 / inverse[position, position]), rel=1e-3)
