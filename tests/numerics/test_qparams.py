"""Scales by every search, against closed forms and a brute-force search over the same steps."""

import itertools

import pytest
import torch

from quantriage.errors import BudgetError
from quantriage.numerics.absmax import AbsMax
from quantriage.numerics.choose_qparams import Search, choose_qparams
from quantriage.numerics.min_max import MinMax
from quantriage.numerics.mse import Mse
from quantriage.numerics.qparams import SCALE_DTYPES, QParams
from quantriage.numerics.rounding import fake_quantize, quantize
from quantriage.numerics.schemes import IntGrid, PerChannel, PerGroup, PerTensor, ScaleDtype, Scheme
from quantriage.numerics.weighted_mse import WeightedMse

GRIDS = [IntGrid(bits, symmetric) for bits, symmetric in itertools.product(range(2, 9), (True, False))]
GRANULARITIES = [PerTensor(), PerChannel(), PerGroup(8)]
DTYPES: list[ScaleDtype] = ["float16", "bfloat16", "float32"]


def random_weight(seed: int, rows: int = 6, columns: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 0.05


def importance(columns: int = 24) -> torch.Tensor:
    return torch.rand(columns, generator=torch.Generator().manual_seed(9)) ** 4 * 10


def searches() -> list[Search]:
    return [AbsMax(), MinMax(), Mse(), WeightedMse(importance())]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("search", searches(), ids=lambda s: type(s).__name__)
def test_scales_have_the_schemes_shape_and_dtype_and_codes_are_in_range(grid, granularity, dtype, search):
    scheme = Scheme(grid, granularity, dtype)
    weight = random_weight(0)
    qparams = choose_qparams(weight, scheme, search)
    shape = {PerTensor: (1, 1), PerChannel: (6, 1), PerGroup: (6, 3)}[type(granularity)]
    assert qparams.scale.shape == shape
    assert qparams.scale.dtype == SCALE_DTYPES[dtype]
    assert (qparams.zero_point is None) == grid.symmetric
    quantized = quantize(weight, scheme, qparams)
    assert quantized.codes.shape == weight.shape
    assert int(quantized.codes.max()) < grid.levels
    # Nothing is clipped by AbsMax and MinMax: at most half a step, plus half a step where the rounded zero
    # point shifts an end of the range, plus the scale's own rounding (2^-8 for bfloat16) over all levels.
    if isinstance(search, AbsMax | MinMax):
        scale = qparams.scale.float().repeat_interleave(24 // shape[1], 1)
        steps = ((quantized.dequantize() - weight) / scale).abs().max()
        assert steps <= (0.5 if grid.symmetric else 1.0) + grid.levels * 2**-8 / 2 + 1e-4


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_weight_on_the_grid_is_unchanged(grid, granularity):
    scheme = Scheme(grid, granularity, "float16")
    generator = torch.Generator().manual_seed(grid.bits)
    groups = {PerTensor: 1, PerChannel: 1, PerGroup: 3}[type(granularity)]
    rows = 1 if isinstance(granularity, PerTensor) else 6
    scale = (torch.rand(rows, groups, generator=generator) * 0.1 + 0.01).half()
    codes = torch.randint(0, grid.levels, (6, 24), generator=generator)
    codes[:, ::8], codes[:, 1::8] = 0, grid.levels - 1  # every group uses its whole range
    center = grid.center if grid.symmetric else grid.levels // 3
    weight = (codes - center) * scale.float().repeat_interleave(24 // groups, 1)
    for search in (MinMax(), Mse(), WeightedMse(importance())):
        assert torch.equal(fake_quantize(weight, scheme, choose_qparams(weight, scheme, search)), weight)


def brute_force(weight, scheme, weights, steps, smallest) -> torch.Tensor:
    """Least weighted error of every group over the same steps, float64, one group and step at a time."""
    rows, columns = weight.shape
    width = scheme.group_width(columns)
    best = torch.full((rows, columns // width), torch.inf, dtype=torch.float64)
    for row, group, step in itertools.product(range(rows), range(columns // width), range(steps)):
        values = weight[row, group * width : (group + 1) * width]
        factor = 1 - step * (1 - smallest) / (steps - 1)
        low, high = min(float(values.min()), 0) * factor, max(float(values.max()), 0) * factor
        if scheme.grid.symmetric:
            scale = max(-low / scheme.grid.center, high / (scheme.grid.center - 1))
        else:
            scale = (high - low) / (scheme.grid.levels - 1)
        scale = float(torch.tensor(scale).to(SCALE_DTYPES[scheme.scale_dtype]))
        zero = (
            scheme.grid.center if scheme.grid.symmetric else min(round(-low / scale), scheme.grid.levels - 1)
        )
        codes = (values.double() / scale).round().clamp(-zero, scheme.grid.levels - 1 - zero)
        error = (weights[group * width : (group + 1) * width] * (codes * scale - values) ** 2).sum()
        best[row, group] = min(best[row, group], error)
    return best


@pytest.mark.parametrize("bits", [2, 4, 5])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(8)], ids=str)
def test_search_finds_what_brute_force_finds(bits, symmetric, granularity):
    scheme = Scheme(IntGrid(bits, symmetric), granularity, "bfloat16")
    weight, weights = random_weight(bits), importance()
    found = fake_quantize(weight, scheme, choose_qparams(weight, scheme, WeightedMse(weights)))
    error = (weights * (found - weight).double() ** 2).view(6, -1, scheme.group_width(24)).sum(-1)
    # float32 against float64 arithmetic: the two may differ where two steps tie
    torch.testing.assert_close(error, brute_force(weight, scheme, weights, 24, 0.3), rtol=1e-4, atol=1e-12)


def test_per_tensor_search_minimises_the_error_of_the_whole_weight():
    scheme = Scheme(IntGrid(3, False), PerTensor())
    weight = random_weight(3)
    one_row = weight.view(1, -1)
    expected = choose_qparams(one_row, Scheme(scheme.grid, PerChannel()), Mse())
    found = choose_qparams(weight, scheme, Mse())
    assert torch.equal(found.scale, expected.scale)


def test_unimportant_inputs_are_clipped_for_important_ones():
    weight = torch.linspace(-0.1, 0.1, 16).repeat(2, 1)
    weight[:, 5], weight[:, 6] = 0.3, -0.3
    weights = torch.ones(16)
    weights[5:7] = 0.0
    scheme = Scheme.parse("w4a-channel")
    inlier = weights > 0
    blind = (fake_quantize(weight, scheme, choose_qparams(weight, scheme, MinMax())) - weight)[:, inlier]
    aware = choose_qparams(weight, scheme, WeightedMse(weights))
    assert (fake_quantize(weight, scheme, aware) - weight)[:, inlier].norm() < 0.5 * blind.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("search", searches(), ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [0.0, 1.5, -1.5, 1e-40, -1e-40, 3e38, -3e38])
def test_degenerate_groups_stay_finite(dtype, search, symmetric, value):
    scheme = Scheme(IntGrid(4, symmetric), PerGroup(8), dtype)
    weight = torch.full((2, 24), value)
    qparams = choose_qparams(weight, scheme, search)
    limits = torch.finfo(SCALE_DTYPES[dtype])
    assert bool((qparams.scale >= limits.tiny).all())
    assert bool(torch.isfinite(qparams.scale).all())
    quantized = fake_quantize(weight, scheme, qparams)
    assert bool(torch.isfinite(quantized).all())
    if value == 0.0:
        assert torch.equal(quantized, weight)
    # A constant is an end of its range: exact up to the scale's rounding. The middle of a symmetric range
    # falls between two codes of an asymmetric grid, so there AbsMax is off by half a step.
    if abs(value) == 1.5 and (symmetric or not isinstance(search, AbsMax)):
        torch.testing.assert_close(quantized, weight, rtol=2**-8, atol=0)


def test_mixed_signs_beyond_float_range_do_not_overflow():
    weight = torch.tensor([[3e38, -3e38, 0.0, 1.0]])
    qparams = choose_qparams(weight, Scheme.parse("w4a-channel", "float32"), MinMax())
    assert bool(torch.isfinite(qparams.scale).all())


def test_group_that_does_not_divide_is_refused():
    with pytest.raises(BudgetError, match="not a multiple of group size 16"):
        choose_qparams(random_weight(0), Scheme.parse("w4a-g16"), MinMax())


def test_transposed_view_gives_the_same_scales():
    weight = random_weight(1)
    view = weight.T.contiguous().T
    for search in searches():
        direct = choose_qparams(weight, Scheme.parse("w4a-g8"), search)
        through_view = choose_qparams(view, Scheme.parse("w4a-g8"), search)
        assert torch.equal(direct.scale, through_view.scale)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_dequantize_is_the_closed_form(grid, granularity):
    scheme = Scheme(grid, granularity)
    weight = random_weight(5)
    qparams: QParams = choose_qparams(weight, scheme, MinMax())
    quantized = quantize(weight, scheme, qparams)
    value = quantized.dequantize()
    groups = qparams.scale.shape[1]
    for row, column in itertools.product(range(6), range(24)):
        at = (row if qparams.scale.shape[0] > 1 else 0, column * groups // 24)
        zero = grid.center if qparams.zero_point is None else int(qparams.zero_point[at])
        expected = (int(quantized.codes[row, column]) - zero) * float(qparams.scale[at])
        assert float(value[row, column]) == pytest.approx(expected, rel=1e-6)
