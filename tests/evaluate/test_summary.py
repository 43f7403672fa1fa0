import math

import msgspec
import numpy as np
import pytest
from tiny_scores import decode, random_scores, result

from quantriage.evaluate.summary import Subject, summarize
from quantriage.records.types import EvalResult

SEQUENCES, LENGTH = 6, 65


@pytest.fixture
def scores_and_tokens():
    return random_scores(SEQUENCES, LENGTH)


@pytest.fixture
def summary(scores_and_tokens):
    scores, tokens = scores_and_tokens
    return summarize(Subject("mix", "mix", 4.5, 1234, 5678, "out", "abc"), scores, tokens, decode)


def test_means_against_numpy(summary, scores_and_tokens):
    scores, _ = scores_and_tokens
    kl, nll = scores.kl.double().numpy(), scores.nll.double().numpy()
    agreement = scores.agreement.numpy()
    assert summary.tokens == SEQUENCES * (LENGTH - 1)
    assert summary.kl.value == pytest.approx(kl.mean())
    assert summary.perplexity.value == pytest.approx(math.exp(nll.mean()))
    assert summary.top1_agreement.value == pytest.approx(agreement.mean())
    assert summary.flips == pytest.approx(1 - agreement.mean())
    assert summary.sequences.kl == pytest.approx(kl.mean(axis=1))
    assert summary.sequences.nll == pytest.approx(nll.mean(axis=1))
    assert summary.sequences.reference_nll == pytest.approx(
        scores.reference_nll.numpy().mean(axis=1), rel=1e-6
    )
    assert summary.sequences.agreement == pytest.approx(agreement.mean(axis=1))
    for interval in (summary.kl, summary.perplexity, summary.top1_agreement):
        assert interval.low < interval.value < interval.high


def test_percentiles_against_numpy(summary, scores_and_tokens):
    kl = scores_and_tokens[0].kl.double().numpy()
    assert list(summary.kl_percentiles) == ["50", "90", "99", "99.9", "max"]
    for name, value in summary.kl_percentiles.items():
        assert value == pytest.approx(np.percentile(kl, 100 if name == "max" else float(name)))


@pytest.mark.parametrize(("length", "bins"), [(65, 16), (50, 16), (5, 4)])
def test_positions_fall_into_equal_bins(length, bins):
    scores, _ = random_scores(3, length)
    parts = np.array_split(scores.kl.double().numpy().mean(axis=0), bins)
    assert result(3, length).kl_by_position == pytest.approx([part.mean() for part in parts])


def test_worst_tokens_are_the_worst_with_their_context(summary, scores_and_tokens):
    scores, tokens = scores_and_tokens
    kl = scores.kl.double().numpy()
    worst = summary.worst_tokens
    assert [place.kl for place in worst] == pytest.approx(np.sort(kl.ravel())[::-1][: len(worst)])
    for place in worst:
        column = place.position - 1  # position 1 is the first predicted token
        assert place.kl == pytest.approx(kl[place.sequence, column])
        ids = tokens[place.sequence].tolist()
        assert place.actual == decode([ids[place.position]])
        assert decode(ids[: place.position]).endswith(place.before)
        assert 1 <= len(place.before.split()) <= 24
        assert place.reference_top == decode([int(scores.reference_top[place.sequence, column])])
        assert place.candidate_top == decode([int(scores.candidate_top[place.sequence, column])])


def test_the_subject_is_carried_and_the_record_is_plain_data(summary):
    assert (summary.label, summary.kind, summary.bits_per_weight) == ("mix", "mix", 4.5)
    assert (summary.body_bytes, summary.file_bytes, summary.source, summary.digest) == (
        1234,
        5678,
        "out",
        "abc",
    )
    assert msgspec.json.decode(msgspec.json.encode(summary), type=EvalResult) == summary


def test_fewer_positions_than_worst_tokens_and_bins():
    small = result(1, 4)
    assert len(small.worst_tokens) == 3
    assert len(small.kl_by_position) == 3
    assert small.kl.low == small.kl.value == small.kl.high
