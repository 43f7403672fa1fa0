"""AWQ and SmoothQuant: scaling alone changes nothing, and the searches find what brute force finds."""

import pytest
import torch
from textbook_gptq import random_weight

from quantriage.errors import DataError, UsageError
from quantriage.methods.awq import AwqOptions, ScaledWeight, awq, awq_scales
from quantriage.methods.input_statistics import InputStatistics
from quantriage.methods.smoothquant import joint_error, round_tokens, smooth, smoothing_scales
from quantriage.numerics.min_max import min_max_qparams
from quantriage.numerics.rounding import quantize
from quantriage.numerics.schemes import Scheme

SCHEME = Scheme.parse("w4a-g16")
INT8 = Scheme.parse("w8s-channel")


def inputs(tokens: int = 200, width: int = 48) -> torch.Tensor:
    """Correlated rows with a few channels far larger than the others."""
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(tokens, width, generator=generator) @ torch.randn(width, width, generator=generator)
    rows[:, ::16] *= 25
    return rows


def known(rows: torch.Tensor) -> InputStatistics:
    return InputStatistics(rows.T @ rows, len(rows), rows.abs().mean(0), rows.abs().amax(0), rows[:64])


def output_error(weights: list[torch.Tensor], rounded: list[ScaledWeight], rows: torch.Tensor) -> float:
    pairs = zip(weights, rounded, strict=True)
    return sum(float((rows.double() @ (w - r.dequantize()).double().T).square().sum()) for w, r in pairs)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_scaling_preserves_the_function_in_full_precision(alpha: float) -> None:
    rows, weight = inputs().double(), random_weight(1, 12, 48).double()
    for scale in (
        awq_scales(rows.abs().mean(0), alpha).double(),
        smoothing_scales(rows.abs().amax(0), [weight], alpha).double(),
    ):
        assert float(scale.max() / scale.min()) > 2
        same = (rows / scale) @ (weight * scale).T
        # float64 products of 48 terms
        assert torch.allclose(same, rows @ weight.T, rtol=1e-10, atol=1e-9)


def test_awq_scales_sit_around_one_and_follow_the_inputs() -> None:
    mean = torch.tensor([1.0, 4.0, 16.0])
    scales = awq_scales(mean, 0.5)
    assert torch.allclose(scales, torch.tensor([0.5, 1.0, 2.0]))
    assert torch.equal(awq_scales(mean, 0.0), torch.ones(3))
    assert bool(torch.isfinite(awq_scales(torch.tensor([0.0, 1.0]), 1.0)).all())


def test_awq_takes_the_alpha_that_brute_force_takes() -> None:
    rows = inputs()
    weights = [random_weight(1, 12, 48), random_weight(2, 24, 48)]
    alphas = (0.0, 0.2, 0.4, 0.6, 0.8)
    found = awq(weights, known(rows), SCHEME, AwqOptions(alphas, clip=False))
    errors = {}
    for alpha in alphas:
        scale = awq_scales(rows.abs().mean(0), alpha)
        rounded = []
        for weight in weights:
            scaled = weight * scale
            own = quantize(scaled, SCHEME, min_max_qparams(scaled, SCHEME))
            rounded.append(ScaledWeight(own, scale))
        errors[alpha] = output_error(weights, rounded, rows)
    assert found.alpha == min(errors, key=lambda a: errors[a])
    assert found.alpha > 0  # on these inputs scaling helps
    # float32 second moments of 200 tokens
    assert found.error == pytest.approx(errors[found.alpha], rel=1e-3)
    assert output_error(weights, list(found.weights), rows) == pytest.approx(errors[found.alpha], rel=1e-6)


def test_awq_is_never_worse_than_nearest_and_clipping_never_worse_than_without() -> None:
    rows, weights = inputs(), [random_weight(3, 16, 48)]
    plain = quantize(weights[0], SCHEME, min_max_qparams(weights[0], SCHEME))
    nearest = output_error(weights, [ScaledWeight(plain, None)], rows)
    scaled = awq(weights, known(rows), SCHEME, AwqOptions(clip=False))
    clipped = awq(weights, known(rows), SCHEME)
    assert clipped.error <= scaled.error <= nearest * (1 + 1e-3)
    assert output_error(weights, list(clipped.weights), rows) <= nearest


def test_layers_of_one_input_share_one_scale() -> None:
    found = awq([random_weight(i, 8, 48) for i in (1, 2, 3)], known(inputs()), SCHEME)
    scales = [weight.input_scale for weight in found.weights]
    assert scales[0] is not None
    assert all(torch.equal(scales[0], scale) for scale in scales if scale is not None)


def test_smoothing_at_a_half_evens_out_inputs_and_weights_alike() -> None:
    rows, weight = inputs(), random_weight(1, 12, 48)
    scale = smoothing_scales(rows.abs().amax(0), [weight], 0.5)
    assert torch.allclose((rows / scale).abs().amax(0), (weight * scale).abs().amax(0), rtol=1e-5)
    dead = smoothing_scales(torch.tensor([0.0, 2.0]), [torch.tensor([[1.0, 0.0]])], 0.5)
    assert torch.equal(dead, torch.ones(2))


def test_round_tokens_is_the_textbook_formula() -> None:
    rows = inputs(7)
    for row, rounded in zip(rows, round_tokens(rows), strict=True):
        step = float(row.abs().max()) / 127
        expected = torch.tensor([max(-128, min(127, round(float(v) / step))) * step for v in row])
        assert torch.allclose(rounded, expected, rtol=1e-6)
    assert torch.equal(round_tokens(torch.zeros(2, 4)), torch.zeros(2, 4))


def test_smoothing_lowers_the_joint_error_where_channels_differ_widely() -> None:
    rows, weight = inputs(), random_weight(1, 12, 48)
    statistics = known(rows)
    errors = {}
    for alpha in (None, 0.5):
        (rounded,) = smooth([weight], statistics, INT8, alpha)
        error, power = joint_error(weight, rounded, rows)
        scale = 1.0 if rounded.input_scale is None else rounded.input_scale
        slow = round_tokens(rows / scale) @ rounded.quantized.dequantize().T - rows @ weight.T
        assert error == pytest.approx(float(slow.double().square().sum()), rel=1e-4)
        assert power == pytest.approx(float((rows @ weight.T).double().square().sum()), rel=1e-4)
        errors[alpha] = error
    assert errors[0.5] < errors[None]


def test_what_is_missing_or_out_of_range_is_named() -> None:
    bare = InputStatistics(torch.eye(48), 1)
    with pytest.raises(DataError, match="mean magnitude"):
        awq([random_weight(1, 8, 48)], bare, SCHEME)
    with pytest.raises(DataError, match="maximum"):
        smooth([random_weight(1, 8, 48)], bare, INT8, 0.5)
    with pytest.raises(UsageError, match="between 0 and 1"):
        AwqOptions((1.5,))
    with pytest.raises(UsageError, match="0 to 1"):
        smoothing_scales(torch.ones(2), [torch.ones(1, 2)], -0.1)
