import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr

from quantriage.evaluate.token_scores import TokenScores, score_tokens, token_kl

ROWS, VOCABULARY = 37, 1000


def logits(noise, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(ROWS, VOCABULARY, generator=generator) * 3
    candidate = reference + noise * torch.randn(ROWS, VOCABULARY, generator=generator)
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    return reference.to(dtype), candidate.to(dtype), targets


def in_double(tensor):
    return log_softmax(tensor.double().numpy(), axis=-1)


@pytest.mark.parametrize("noise", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_scipy_in_double(noise, dtype):
    reference, candidate, targets = logits(noise, dtype=dtype)
    scores = score_tokens(reference, candidate, targets)
    left, right = in_double(reference), in_double(candidate)
    kl = rel_entr(np.exp(left), np.exp(right)).sum(axis=-1)
    # a log-probability of about -10 in float32 is off by 1e-6, and KL is a mean of differences of such
    np.testing.assert_allclose(scores.kl, kl, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(token_kl(reference, candidate), scores.kl, rtol=1e-5, atol=1e-6)
    rows = np.arange(ROWS)
    np.testing.assert_allclose(scores.nll, -right[rows, targets], rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(scores.reference_nll, -left[rows, targets], rtol=1e-6, atol=2e-6)
    top = reference.gather(1, scores.reference_top[:, None]).squeeze(1)
    assert torch.equal(top, reference.amax(dim=1))  # by value: bfloat16 has ties
    top = candidate.gather(1, scores.candidate_top[:, None]).squeeze(1)
    assert torch.equal(top, candidate.amax(dim=1))
    assert torch.equal(scores.agreement, scores.reference_top == scores.candidate_top)


def test_closed_form_of_two_tokens():
    reference = torch.tensor([[0.7, 0.3], [0.5, 0.5]]).log()
    candidate = torch.tensor([[0.2, 0.8], [0.5, 0.5]]).log()
    scores = score_tokens(reference, candidate, torch.tensor([0, 1]))
    expected = 0.7 * np.log(0.7 / 0.2) + 0.3 * np.log(0.3 / 0.8)
    np.testing.assert_allclose(scores.kl, [expected, 0.0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(scores.nll, -np.log([0.2, 0.5]), rtol=1e-6)
    assert scores.agreement.tolist() == [False, True]
    assert scores.candidate_top[0] == 1


def test_identical_logits_have_no_kl_at_all():
    reference, _, targets = logits(1.0)
    scores = score_tokens(reference, reference.clone(), targets)
    assert (scores.kl == 0).all()
    assert scores.agreement.all()
    assert torch.equal(scores.nll, scores.reference_nll)


@pytest.mark.parametrize("noise", [1e-7, 1e-5, 1e-3])
def test_never_negative_however_close(noise):
    for seed in range(20):
        reference, candidate, _ = logits(noise, seed)
        assert (token_kl(reference, candidate) >= 0).all()


@pytest.mark.parametrize(("noise", "tolerance"), [(1e-4, 1e-2), (1e-3, 1e-3), (1e-2, 1e-4)])
def test_a_kl_of_a_billionth_is_still_measured(noise, tolerance):
    """The noise floor of float32 lies near 1e-9; relative error falls as the logits' distance grows."""
    reference, candidate, _ = logits(noise)
    left, right = in_double(reference), in_double(candidate)
    kl = rel_entr(np.exp(left), np.exp(right)).sum(axis=-1)
    np.testing.assert_allclose(token_kl(reference, candidate), kl, rtol=tolerance)


def test_a_shift_of_all_logits_changes_nothing():
    reference, candidate, _ = logits(0.5)
    # adding 100 rounds a float32 logit by up to 4e-6
    np.testing.assert_allclose(
        token_kl(reference + 100, candidate - 50), token_kl(reference, candidate), rtol=1e-4, atol=1e-5
    )


def test_a_confident_contradiction_stays_finite():
    reference = torch.tensor([[200.0, 0.0, 0.0]])
    candidate = torch.tensor([[0.0, 200.0, 0.0]])
    np.testing.assert_allclose(token_kl(reference, candidate), [200.0], rtol=1e-6)
    mild, likely = torch.tensor([[0.0, -45.0]]), torch.tensor([[-3.0, 0.0]])
    left, right = in_double(mild), in_double(likely)
    expected = rel_entr(np.exp(left), np.exp(right)).sum(axis=-1)
    np.testing.assert_allclose(token_kl(mild, likely), expected, rtol=1e-6)


def test_arguments_are_left_as_they_were():
    reference, candidate, targets = logits(0.5)
    before = reference.clone(), candidate.clone()
    score_tokens(reference, candidate, targets)
    assert torch.equal(reference, before[0])
    assert torch.equal(candidate, before[1])


def test_parts_join_to_the_whole():
    reference, candidate, targets = logits(0.5)
    whole = score_tokens(reference[:36], candidate[:36], targets[:36]).reshape(4, 9)
    parts = [
        score_tokens(reference[i : i + 9], candidate[i : i + 9], targets[i : i + 9]) for i in (0, 9, 18, 27)
    ]
    joined = TokenScores.cat(parts).reshape(4, 9)
    for name in ("kl", "nll", "reference_nll"):
        # the order of a float32 sum may depend on the number of rows
        np.testing.assert_allclose(getattr(whole, name), getattr(joined, name), rtol=1e-5, atol=1e-6)
    for name in ("agreement", "reference_top", "candidate_top"):
        assert torch.equal(getattr(whole, name), getattr(joined, name))
