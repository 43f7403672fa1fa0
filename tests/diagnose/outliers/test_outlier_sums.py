"""Streaming sums against numpy and scipy on the whole tensor; a merged split against the whole."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from quantriage.diagnose.outliers.input_sums import UNKNOWN, InputSum
from quantriage.diagnose.outliers.magnitude_bins import MagnitudeBins
from quantriage.diagnose.outliers.moments import Moments
from quantriage.diagnose.outliers.weight_sums import SIGMAS, TailSum, WeightSum
from quantriage.diagnose.outliers.weights import sums
from quantriage.records.outliers import STANDS_OUT

GENERATOR = torch.Generator().manual_seed(11)
HEAVY = torch.randn(96, 64, generator=GENERATOR) ** 3 + 0.7  # skewed in mean, heavy in tail
FAR = torch.randn(4000, generator=GENERATOR) * 1e-2 + 1000.0  # a mean 100,000 times the deviation
CUTS = (1, 7, 40, 95)


def parts(values: Tensor) -> list[Tensor]:
    """Uneven pieces of the first dimension, one of them empty."""
    ends = [0, 0, *CUTS, len(values)]
    return [values[a:b] for a, b in pairwise(ends)]


def moments_of(pieces: list[Tensor]) -> Moments:
    total = Moments()
    for piece in pieces:
        one = Moments()
        one.update(piece)
        total.merge(one)
    return total


@pytest.mark.parametrize("values", [HEAVY, FAR], ids=["heavy tail", "far from zero"])
def test_merged_moments_are_those_of_the_whole(values: Tensor) -> None:
    whole = values.double().numpy().ravel()
    found = moments_of(parts(values))
    assert found.count == whole.size
    assert found.mean == pytest.approx(whole.mean(), rel=1e-12)
    assert found.std == pytest.approx(
        whole.std(), rel=1e-9
    )  # float64 with a mean of 1e5 deviations: 1e-11 left
    assert found.kurtosis == pytest.approx(stats.kurtosis(whole), rel=1e-7, abs=1e-7)
    straight = Moments()
    straight.update(values)
    assert found.std == pytest.approx(straight.std, rel=1e-9)


def test_moments_of_many_pieces_of_a_long_tensor() -> None:
    """Longer than one piece of float64, so that `update` itself merges."""
    values = torch.randn(600_001, generator=GENERATOR).exp_()
    found = Moments()
    found.update(values)
    assert found.kurtosis == pytest.approx(stats.kurtosis(values.double().numpy()), rel=1e-9)


def test_moments_of_nothing_and_of_a_constant() -> None:
    assert (Moments().std, Moments().kurtosis) == (0.0, 0.0)
    constant = moments_of([torch.full((5,), 3.0), torch.full((4,), 3.0)])
    assert (constant.mean, constant.std, constant.kurtosis) == (3.0, 0.0, 0.0)


def test_magnitude_bins_are_numpys_histogram_and_merge() -> None:
    values = torch.cat([HEAVY.flatten(), torch.tensor([0.0, -0.0, 1e-30, -3e7, 1.0, 1.25])])
    whole, merged = MagnitudeBins(), MagnitudeBins()
    whole.update(values)
    for piece in parts(values):
        one = MagnitudeBins()
        one.update(piece)
        merged.merge(one)
    assert torch.equal(whole.counts, merged.counts)
    record = merged.record()
    edges = np.array(record.edges())
    magnitudes = values.abs().double().numpy()
    expected, _ = np.histogram(magnitudes[magnitudes > 0], bins=edges)
    assert record.zeros == 2
    assert list(record.counts) == expected.tolist()
    assert sum(record.counts) == values.numel() - 2
    at_an_edge = float(edges[len(edges) // 2])
    assert record.share_beyond(at_an_edge) == pytest.approx((magnitudes >= at_an_edge).mean(), rel=1e-12)


def test_two_passes_over_a_weight_are_the_whole_weight() -> None:
    first, tail = sums(HEAVY)
    whole = HEAVY.double().numpy()
    distance = np.abs(whole - whole.mean())
    sigma = whole.std()
    assert (first.low, first.high) == (whole.min(), whole.max())
    for k in SIGMAS:
        assert tail.beyond[k] == (distance > k * sigma).sum() > 0
    inner = whole[distance <= 3 * sigma]
    assert (tail.low, tail.high) == (inner.min(), inner.max())
    outliers = distance > 6 * sigma
    assert tail.row_outliers.tolist() == outliers.sum(axis=1).tolist()
    assert tail.column_outliers.tolist() == outliers.sum(axis=0).tolist()
    np.testing.assert_allclose(tail.column_largest.numpy(), distance.max(axis=0), rtol=1e-12)
    np.testing.assert_allclose(tail.row_largest.numpy(), distance.max(axis=1), rtol=1e-12)


def test_a_weight_split_by_rows_and_merged_is_the_whole() -> None:
    whole_first, whole_tail = sums(HEAVY)
    first = WeightSum()
    for piece in parts(HEAVY)[1:]:
        one = WeightSum()
        one.update(piece)
        first.merge(one)
    assert (first.low, first.high) == (whole_first.low, whole_first.high)
    assert first.bins.record() == whole_first.bins.record()
    tail = TailSum(whole_tail.mean, whole_tail.std, (96, 64))
    start = 0
    for piece in parts(HEAVY)[1:]:
        one = TailSum(whole_tail.mean, whole_tail.std, (96, 64))
        one.update(piece, start)
        tail.merge(one)
        start += len(piece)
    assert tail.beyond == whole_tail.beyond
    assert (tail.low, tail.high) == (whole_tail.low, whole_tail.high)
    for name in ("row_outliers", "column_outliers", "row_largest", "column_largest"):
        assert torch.equal(getattr(tail, name), getattr(whole_tail, name))


def test_an_input_in_batches_and_merged_is_the_whole() -> None:
    rows = HEAVY.clone()
    rows[:, 5] *= 40
    rows[17, 9] = 9000.0
    left, right = InputSum(64), InputSum(64)
    for piece, start in ((rows[:30], 0), (rows[30:50], 30)):
        left.update(piece, torch.arange(start, start + len(piece)))
    right.update(rows[50:], None)
    left.merge(right)
    magnitudes = rows.double().abs().numpy()
    assert left.tokens == 96
    assert left.mean_magnitude == pytest.approx(
        magnitudes.mean(), rel=1e-7
    )  # |x| is float32 before it is summed
    np.testing.assert_array_equal(left.channel_maximum.numpy(), rows.abs().amax(0).numpy())
    stands = magnitudes > STANDS_OUT * magnitudes.mean(axis=1, keepdims=True)
    assert left.channel_stands_out.tolist() == stands.sum(axis=0).tolist()
    assert left.channel_stands_out[5] > 48
    np.testing.assert_array_equal(left.peaks().numpy(), rows.abs().amax(1).numpy())
    assert left.peak_channels()[17] == 9
    assert left.places().tolist() == [*range(50), *[UNKNOWN] * 46]
    ratios = magnitudes.max(axis=1) / magnitudes.mean(axis=1)
    assert left.typical_ratio() == pytest.approx(np.quantile(ratios, 0.5, method="lower"), rel=1e-6)
    assert left.moments.kurtosis == pytest.approx(stats.kurtosis(rows.double().numpy().ravel()), rel=1e-7)


def test_an_input_that_no_token_reached() -> None:
    empty = InputSum(8)
    empty.update(torch.zeros(0, 8), None)
    assert (empty.tokens, empty.mean_magnitude) == (0, 0.0)
