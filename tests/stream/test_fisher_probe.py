"""The probe's moments, by enumerating every choice of signs."""

from itertools import product

import torch

from quantriage.stream.fisher_probe import fisher_probes, random_signs


def test_covariance_over_all_signs_is_the_fisher_matrix_of_the_logits() -> None:
    p = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01])
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=5)))
    rows = fisher_probes((p.log() + 100.0).expand(len(signs), 5), signs)
    torch.testing.assert_close(rows.mean(dim=0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.T @ rows / len(signs), p.diag() - torch.outer(p, p), atol=1e-5, rtol=0)


def test_signs_are_fair_and_independent() -> None:
    signs = random_signs(4000, 21, torch.Generator().manual_seed(0))
    assert signs.shape == (4000, 21)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    # Entries are means of 4000 products of signs: standard error 0.016, 231 of them.
    assert (signs.T @ signs / 4000 - torch.eye(21)).abs().max() < 0.07
    assert abs(float(signs.mean())) < 0.02


def test_rows_do_not_repeat_each_other() -> None:
    signs = random_signs(50, 4000, torch.Generator().manual_seed(0))
    # Means of 4000 products: standard error 0.016, 1225 pairs.
    assert (signs @ signs.T / 4000 - torch.eye(50)).abs().max() < 0.07


def test_signs_repeat_with_their_seed() -> None:
    draws = [random_signs(3, 9, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
