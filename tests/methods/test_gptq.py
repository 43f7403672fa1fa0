"""GPTQ against the textbook algorithm, brute force, and its own promises."""

import itertools

import pytest
import torch
from textbook_gptq import correlated_hessian, objective, random_weight, textbook_gptq

from quantriage.errors import CheckpointError, DataError, UsageError
from quantriage.methods.gptq import Gptq, GptqOptions
from quantriage.methods.protocol import SiteStatistics
from quantriage.methods.rtn import Rtn
from quantriage.numerics.choose_qparams import choose_qparams
from quantriage.numerics.min_max import MinMax
from quantriage.numerics.mse import Mse
from quantriage.numerics.schemes import IntGrid, PerChannel, PerGroup, PerTensor, Scheme
from quantriage.numerics.weight_error import weight_error
from quantriage.numerics.weighted_mse import WeightedMse

GRIDS = [IntGrid(bits, symmetric) for bits, symmetric in itertools.product(range(2, 9), (True, False))]
GRANULARITIES = [PerTensor(), PerChannel(), PerGroup(16)]


def order_of(hessian: torch.Tensor, act_order: bool) -> list[int]:
    columns = hessian.shape[0]
    if not act_order:
        return list(range(columns))
    return sorted(range(columns), key=lambda column: -float(hessian[column, column]))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("act_order", [True, False])
def test_codes_equal_the_textbooks(grid, granularity, act_order):
    scheme = Scheme(grid, granularity)
    weight, hessian = random_weight(1, 12, 48), correlated_hessian(2, 48)
    options = GptqOptions(act_order=act_order, scales="diagonal", keep_nearest=False, refine_sweeps=0)
    found = Gptq(options).quantize(weight, SiteStatistics(hessian, 192), [scheme])[0].quantized
    qparams = choose_qparams(weight, scheme, WeightedMse(hessian.diagonal()))
    assert torch.equal(found.scale, qparams.scale)
    codes, margin = textbook_gptq(weight, hessian, scheme, qparams, order_of(hessian, act_order), 0.01)
    # A target on a boundary may round either way in float32, and the row goes its own way from there. Such a
    # row's textbook margin is below 1e-4 steps somewhere (float32 error of a target of up to 2^8 steps after
    # 48 updates); every other row must agree in every code.
    clear = margin.amin(1) > 1e-4 * max(1, grid.levels / 64)
    assert int(clear.sum()) >= 6
    assert torch.equal(found.codes[clear].long(), codes[clear])


def test_plain_takes_each_groups_range_from_the_compensated_weight():
    scheme = Scheme.parse("w3a-g16")
    weight, hessian = random_weight(3, 10, 48), correlated_hessian(4, 48)
    found = Gptq(GptqOptions.plain()).quantize(weight, SiteStatistics(hessian, 1), [scheme])[0].quantized
    damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(48)
    left = weight.double().clone()
    value = found.dequantize().double()
    clear = torch.ones(10, dtype=torch.bool)
    for start in range(0, 48, 16):
        expected = choose_qparams(left[:, start : start + 16].float(), Scheme.parse("w3a-channel"), MinMax())
        scale = found.scale[:, start // 16 : start // 16 + 1]
        # half-precision scales next to a rounding boundary may land on either neighbour
        torch.testing.assert_close(scale, expected.scale, rtol=2**-10, atol=0)
        for column in range(start, start + 16):
            inverse = torch.linalg.inv(damped[column:, column:])
            steps = (left[:, column] - value[:, column]) / scale[:, 0].double()
            inside = (found.codes[:, column] > 0) & (found.codes[:, column] < 7)
            clear &= (steps.abs() <= 0.5 + 1e-3) | ~inside  # rounded to nearest where not clipped
            error = (left[:, column] - value[:, column]) / inverse[0, 0]
            left[:, column:] -= error.unsqueeze(1) * inverse[0].unsqueeze(0)
    assert bool(clear.all())


def test_four_columns_at_two_bits_come_close_to_the_best_codes():
    scheme = Scheme.parse("w2a-channel")
    weight, hessian = random_weight(5, 16, 4), correlated_hessian(6, 4, tokens=40)
    found = Gptq().quantize(weight, SiteStatistics(hessian, 40), [scheme])[0]
    zero = found.quantized.zero_point.float()
    every = torch.tensor(list(itertools.product(range(4), repeat=4)), dtype=torch.float32)  # [256, 4]
    scale = found.quantized.scale.float()
    difference = weight.unsqueeze(1) - (every.unsqueeze(0) - zero.unsqueeze(1)) * scale.unsqueeze(1)
    best = (difference @ hessian * difference).sum(-1).amin(1).sum()
    total = (weight @ hessian * weight).sum()
    nearest = Rtn().quantize(weight, SiteStatistics(hessian, 40), [scheme])[0].objective
    # Not optimal by construction: greedy within a quarter of the gap that rounding to nearest leaves.
    assert found.objective >= float(best / total) * (1 - 1e-5)
    assert found.objective - float(best / total) <= 0.25 * (nearest - float(best / total))


def test_gptq_halves_the_error_of_nearest_rounding_on_correlated_inputs():
    weight, hessian = random_weight(7, 32, 96), correlated_hessian(8, 96)
    statistics = SiteStatistics(hessian, 384)
    for name in ("w4a-g32", "w4s-g32", "w3a-channel"):
        scheme = Scheme.parse(name)
        ours = Gptq().quantize(weight, statistics, [scheme])[0].objective
        assert ours < 0.5 * Rtn().quantize(weight, statistics, [scheme])[0].objective


def test_rank_deficient_hessian_with_dead_columns():
    weight, hessian = random_weight(9, 8, 32), correlated_hessian(10, 32, tokens=5)
    dead = [3, 17]
    hessian[dead], hessian[:, dead] = 0.0, 0.0
    scheme = Scheme.parse("w4a-g16")
    result = Gptq(GptqOptions(keep_nearest=False, refine_sweeps=0)).quantize(
        weight, SiteStatistics(hessian, 5), [scheme]
    )[0]
    assert "dead-columns" in [finding.code for finding in result.findings]
    value = result.quantized.dequantize()
    scale = result.quantized.scale.float()
    for column in dead:  # nearest rounding: no more than half a step away, clipped ones apart
        steps = ((value - weight)[:, column] / scale[:, column // 16]).abs()
        at_the_end = (result.quantized.codes[:, column] == 0) | (result.quantized.codes[:, column] == 15)
        assert bool(((steps <= 0.5 + 1e-4) | at_the_end).all())


def test_no_calibration_at_all_minimises_the_weight_error():
    weight, statistics = random_weight(11, 6, 32), SiteStatistics(torch.zeros(32, 32), 0)
    scheme = Scheme.parse("w4a-g16")
    result = Gptq().quantize(weight, statistics, [scheme])[0]
    nearest = Rtn(Mse()).quantize(weight, statistics, [scheme])[0]
    ours, theirs = (weight_error(weight, found.quantized).frobenius for found in (result, nearest))
    assert ours <= theirs * (1 + 1e-6)
    assert result.objective == 0.0


def test_damping_is_raised_until_the_hessian_factors_and_reported():
    # All correlations -0.1: the least eigenvalue is 1 - 15 * 0.1 = -0.5 of the diagonal, which 1% and 10%
    # do not lift above zero and 100% does.
    hessian = torch.full((16, 16), -0.1).fill_diagonal_(1.0)
    result = Gptq().quantize(random_weight(13, 4, 16), SiteStatistics(hessian, 64), [Scheme.parse("w4a-g16")])
    assert result[0].damping == pytest.approx(1.0)
    warnings = [finding.code for finding in result[0].findings if finding.severity == "warning"]
    assert warnings == ["damping-raised"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w, h: w.__setitem__((2, 5), float("nan")), "nan at row 2, column 5"),
        (lambda w, h: w.__setitem__((1, 0), float("-inf")), "-inf at row 1, column 0"),
    ],
)
def test_bad_weights_are_refused_by_place(spoil, message):
    weight, hessian = random_weight(0, 4, 16), correlated_hessian(0, 16)
    spoil(weight, hessian)
    with pytest.raises(CheckpointError, match=message):
        Gptq().quantize(weight, SiteStatistics(hessian, 1), [Scheme.parse("w4a-g16")])


def test_bad_hessians_are_refused():
    weight, scheme = random_weight(0, 4, 16), [Scheme.parse("w4a-g16")]
    hessian = correlated_hessian(0, 16)
    hessian[3, 7] = hessian[7, 3] = float("inf")
    with pytest.raises(DataError, match="not finite for input 3"):
        Gptq().quantize(weight, SiteStatistics(hessian, 1), scheme)
    hessian = correlated_hessian(0, 16)
    hessian[4, 4] = -1
    with pytest.raises(DataError, match="on its diagonal at input 4"):
        Gptq().quantize(weight, SiteStatistics(hessian, 1), scheme)
    with pytest.raises(DataError, match="expected a square float32"):
        Gptq().quantize(weight, SiteStatistics(torch.zeros(3, 4), 1), scheme)
    with pytest.raises(CheckpointError, match=r"expected float32 \[out, 16\]"):
        Gptq().quantize(random_weight(0, 4, 8), SiteStatistics(correlated_hessian(0, 16), 1), scheme)
    indefinite = -1e6 * torch.ones(16, 16)
    indefinite.fill_diagonal_(1e-3)
    with pytest.raises(DataError, match="not positive definite"):
        Gptq().quantize(weight, SiteStatistics(indefinite, 1), scheme)


def test_options_that_contradict_are_refused():
    with pytest.raises(UsageError, match="natural order"):
        GptqOptions(act_order=True, scales="compensated")
    with pytest.raises(UsageError, match="no sweeps"):
        GptqOptions(act_order=False, scales="compensated")
    with pytest.raises(UsageError, match="refine_sweeps -1"):
        GptqOptions(refine_sweeps=-1)
    with pytest.raises(UsageError, match="damping 0"):
        GptqOptions(damping=0)


def test_fallback_rows_are_reported_and_better():
    """Eight inputs alike: the last ones take errors that nothing corrects, and some of many rows lose."""
    weight, hessian = random_weight(15, 256, 8), torch.full((8, 8), 0.5).fill_diagonal_(1.0)
    statistics, scheme = SiteStatistics(hessian, 16), Scheme.parse("w2s-channel")
    greedy = GptqOptions(keep_nearest=False, refine_sweeps=0, scales="min-max")
    kept = GptqOptions(keep_nearest=True, refine_sweeps=0, scales="min-max")
    without = Gptq(greedy).quantize(weight, statistics, [scheme])[0]
    result = Gptq(kept).quantize(weight, statistics, [scheme])[0]
    assert result.objective < without.objective
    assert "rows-fell-back" in [finding.code for finding in result.findings]
    assert result.objective == pytest.approx(
        objective(weight, result.quantized.dequantize(), hessian), rel=1e-4
    )


def test_inputs_are_not_changed():
    weight, hessian = random_weight(17, 8, 32), correlated_hessian(18, 32)
    before = weight.clone(), hessian.clone()
    for options in (GptqOptions(), GptqOptions.plain()):
        Gptq(options).quantize(weight, SiteStatistics(hessian, 1), [Scheme.parse("w4a-g16")])
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_wide_stack_in_several_blocks_of_rows_equals_row_by_row():
    """Rows are cut into blocks to bound memory; 200 rows of 24 schemes need more than one."""
    weight, hessian = random_weight(19, 200, 1024), torch.diag(torch.linspace(0.1, 2.0, 1024))
    schemes = [Scheme.parse(name) for name in ("w4a-g64", "w3a-g128", "w8s-channel")] * 8
    together = Gptq(GptqOptions(scales="min-max", keep_nearest=False, refine_sweeps=0)).quantize(
        weight, SiteStatistics(hessian, 1), schemes
    )
    for scheme, result in zip(schemes, together, strict=True):
        # a diagonal Hessian feeds nothing on, so the codes are the nearest ones
        nearest = Rtn().quantize(weight, SiteStatistics(hessian, 1), [scheme])[0].quantized
        assert torch.equal(result.quantized.codes, nearest.codes)
