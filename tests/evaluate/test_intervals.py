import itertools
import math

import numpy as np
import pytest
from tiny_scores import result

from quantriage.evaluate.intervals import compare, mean_interval, perplexity_interval


def test_against_every_resample_of_four_sequences():
    """All 256 equally likely resamples give the exact percentiles; their steps are what sampling may miss."""
    values = [0.1, 0.2, 0.4, 0.9]
    means = np.sort([np.mean(drawn) for drawn in itertools.product(values, repeat=4)])
    found = mean_interval(values)
    assert found.value == pytest.approx(0.4)
    for end, share in ((found.low, 0.025), (found.high, 0.975)):
        lowest, highest = np.quantile(means, [share - 0.012, share + 0.012])  # 3.4 deviations of 2000 draws
        assert lowest <= end <= highest


def test_many_sequences_approach_the_normal_interval():
    values = np.random.default_rng(1).gamma(2.0, size=400)
    found = mean_interval(values.tolist())
    half = 1.96 * values.std() / math.sqrt(len(values))
    # an end of a 2000-draw percentile interval wobbles by about 6% of the half width
    assert found.high - found.value == pytest.approx(half, rel=0.2)
    assert found.value - found.low == pytest.approx(half, rel=0.2)


@pytest.mark.parametrize("values", [[0.3], [0.3, 0.3, 0.3]])
def test_without_spread_the_interval_is_the_point(values):
    found = mean_interval(values)
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.3, 0.3))


def test_the_same_values_give_the_same_interval():
    values = np.random.default_rng(2).random(16).tolist()
    assert mean_interval(values) == mean_interval(values)


def test_perplexity_is_the_exponential_of_the_mean():
    values = np.random.default_rng(3).random(16) + 3
    found, logarithm = perplexity_interval(values.tolist()), mean_interval(values.tolist())
    assert found.value == pytest.approx(math.exp(values.mean()))
    assert found.low == pytest.approx(math.exp(logarithm.low))
    assert found.high == pytest.approx(math.exp(logarithm.high))


def test_paired_difference_is_first_minus_second():
    first, second = result(12, 20, seed=0, label="a"), result(12, 20, seed=1, label="b")
    found = compare(first, second)
    difference = np.subtract(first.sequences.kl, second.sequences.kl)
    assert (found.first, found.second) == ("a", "b")
    assert found.difference.value == pytest.approx(difference.mean())
    assert found.difference == mean_interval(difference.tolist())
    mirrored = compare(second, first).difference
    assert mirrored.value == pytest.approx(-found.difference.value)


def test_pairing_removes_what_the_sequences_share():
    """A constant gain on sequences that differ a hundred times more is seen for what it is."""
    import msgspec

    first = result(12, 20)
    shifted = tuple(kl - 0.001 for kl in first.sequences.kl)
    second = msgspec.structs.replace(
        first, sequences=msgspec.structs.replace(first.sequences, kl=shifted), label="b"
    )
    found = compare(first, second).difference
    assert (found.low, found.high) == pytest.approx((0.001, 0.001))


def test_an_evaluation_against_itself_differs_by_nothing():
    found = compare(result(12, 20), result(12, 20)).difference
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_other_numbers_of_sequences_are_no_pairs():
    with pytest.raises(ValueError, match="12 sequences"):
        compare(result(12, 20), result(11, 20))
