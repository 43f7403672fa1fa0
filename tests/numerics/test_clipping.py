"""Clipping at a share of the range: the two parts of the error add up, and count what a slow loop counts."""

import pytest
import torch

from quantriage.errors import UsageError
from quantriage.numerics.clipping import error_split, ratio_qparams
from quantriage.numerics.min_max import min_max_qparams
from quantriage.numerics.rounding import quantize
from quantriage.numerics.schemes import Scheme

SCHEMES = [Scheme.parse(s) for s in ("w4a-g16", "w4s-g16", "w3a-channel", "w8s-channel", "w4a-tensor")]


def weight(seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(12, 48, generator=torch.Generator().manual_seed(seed))
    return drawn * drawn.abs()  # tails, so that clipping matters


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("ratio", [1.0, 0.8, 0.4])
def test_clipping_and_rounding_add_up_to_the_whole_error(scheme: Scheme, ratio: float) -> None:
    original = weight()
    rounded = quantize(original, scheme, ratio_qparams(original, scheme, ratio))
    split = error_split(original, rounded)
    whole = (rounded.dequantize().double() - original.double()).square().sum().item()
    # the float32 differences are squared in float32: 2^-23 for each
    assert split.clipping + split.rounding == pytest.approx(whole, rel=1e-6)
    assert (split.clipping > 0) == (split.clipped > 0)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_each_weight_is_counted_as_a_slow_loop_counts_it(scheme: Scheme) -> None:
    original = weight(1)
    rounded = quantize(original, scheme, ratio_qparams(original, scheme, 0.6))
    scale = rounded.scale.float()
    width = 48 // scale.shape[1]
    clipped, clipping, rounding = 0, 0.0, 0.0
    for row in range(12):
        for column in range(48):
            own = (row if scale.shape[0] > 1 else 0), column // width
            step = scale[own].item()
            zero = scheme.grid.center if rounded.zero_point is None else int(rounded.zero_point[own])
            value = original[row, column].item()
            code = round(value / step) + zero
            kept = min(max(code, 0), scheme.grid.levels - 1)
            error = ((kept - zero) * step - value) ** 2
            if code != kept:
                clipped, clipping = clipped + 1, clipping + error
            else:
                rounding += error
    split = error_split(original, rounded)
    assert clipped > 0
    assert split.clipped == clipped
    assert split.clipping == pytest.approx(clipping, rel=1e-5)
    assert split.rounding == pytest.approx(rounding, rel=1e-5)


def test_the_full_range_is_min_max_and_clips_nothing_on_a_symmetric_grid() -> None:
    original, scheme = weight(2), Scheme.parse("w4s-g16")
    full, plain = ratio_qparams(original, scheme, 1.0), min_max_qparams(original, scheme)
    assert torch.equal(full.scale, plain.scale)
    assert error_split(original, quantize(original, scheme, full)).clipped == 0


def test_a_narrower_range_clips_more_and_rounds_finer() -> None:
    original, scheme = weight(3), Scheme.parse("w4s-channel")
    splits = [
        error_split(original, quantize(original, scheme, ratio_qparams(original, scheme, ratio)))
        for ratio in (1.0, 0.7, 0.4)
    ]
    assert [s.clipped for s in splits] == sorted({s.clipped for s in splits})
    assert [s.rounding for s in splits] == sorted((s.rounding for s in splits), reverse=True)


@pytest.mark.parametrize("ratio", [0.0, 1.1, -1.0, float("nan")])
def test_a_ratio_that_means_nothing_is_refused(ratio: float) -> None:
    with pytest.raises(UsageError, match="clipping ratio"):
        ratio_qparams(weight(), SCHEMES[0], ratio)
