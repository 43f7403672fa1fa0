"""Second moments against the plain formula, in double."""

import pytest
import torch

from quantriage.stream.hessian import HessianSum

CPU = torch.device("cpu")
# float32 sums of 90 products: a few units in the last place of entries around 1.
ROUNDING = 1e-5


def naive(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for row, weight in zip(rows.double(), weights.double(), strict=True):
        total += weight * torch.outer(row, row)
    return total / total.diagonal().mean()


def some_rows(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(width)
    return torch.randn(90, width, generator=generator), torch.rand(90, generator=generator)


@pytest.mark.parametrize("width", [1, 5, 256, 300, 600])  # beside and beyond the mirror's stripes
@pytest.mark.parametrize("weighted", [False, True])
def test_a_sum_over_batches_is_the_plain_formula(width: int, weighted: bool) -> None:
    rows, weights = some_rows(width)
    total = HessianSum(width, CPU)
    for part in (slice(0, 40), slice(40, 41), slice(41, 90)):
        total.update(rows[part], weights[part] if weighted else None)
    value = total.value()
    assert total.tokens == 90
    assert value.dtype == torch.float32
    assert torch.equal(value, value.T)
    expected = naive(rows, weights if weighted else torch.ones(90))
    torch.testing.assert_close(value.double(), expected, atol=ROUNDING, rtol=ROUNDING)


def test_sums_over_shards_merge_to_the_whole() -> None:
    rows, weights = some_rows(12)
    parts = [HessianSum(12, CPU) for _ in range(2)]
    for total, part in zip(parts, (slice(0, 30), slice(30, 90)), strict=True):
        total.update(rows[part], weights[part])
    parts[0].merge(parts[1])
    assert parts[0].tokens == 90
    torch.testing.assert_close(parts[0].value().double(), naive(rows, weights), atol=ROUNDING, rtol=ROUNDING)


def test_a_site_that_saw_nothing_gives_zeros() -> None:
    assert torch.equal(HessianSum(3, CPU).value(), torch.zeros(3, 3))


def test_inputs_in_bfloat16_with_a_large_mean_stay_positive_definite() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = 3 * torch.randn(200, generator=generator)
    total = HessianSum(200, CPU)
    batches = [(mean + 0.2 * torch.randn(400, 200, generator=generator)).bfloat16() for _ in range(4)]
    for rows in batches:
        total.update(rows)
    every = torch.cat(batches)
    value = total.value()
    torch.testing.assert_close(value.double(), naive(every, torch.ones(len(every))), atol=1e-4, rtol=1e-4)
    damped = value + 1e-4 * torch.eye(200)
    assert torch.linalg.cholesky_ex(damped).info == 0


def test_float32_inputs_are_summed_in_float32_under_autocast() -> None:
    rows, weights = some_rows(12)
    total = HessianSum(12, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        total.update(rows, weights)
    torch.testing.assert_close(total.value().double(), naive(rows, weights), atol=ROUNDING, rtol=ROUNDING)
