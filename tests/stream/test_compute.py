"""The measured choice of dtype, and what it means for products."""

import pytest
import torch

from quantriage.stream.compute import FASTER_BY, NARROW, Compute, choose_compute, exact


def test_the_choice_follows_its_own_measurement() -> None:
    chosen = choose_compute("cpu", 512)
    assert chosen.dtype_name in ("float32", "bfloat16")
    ratio = float(chosen.reason.split(" times")[0].rpartition(" ")[2])
    if abs(ratio - FASTER_BY) > 0.1:  # the reason is rounded to one digit
        assert (chosen.dtype == torch.bfloat16) == (ratio > FASTER_BY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_run_in_the_chosen_dtype(dtype: torch.dtype) -> None:
    compute = Compute(torch.device("cpu"), dtype, "for the test")
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    with compute.autocast():
        product = torch.nn.functional.linear(weight, weight)
        norm = torch.nn.functional.layer_norm(weight, (8,))
    expected = torch.nn.functional.linear(weight.to(dtype), weight.to(dtype))
    assert product.dtype == dtype
    assert torch.equal(product, expected)
    assert norm.dtype == torch.float32


def test_narrow_models_run_in_float32_without_a_measurement() -> None:
    assert choose_compute("cpu", NARROW - 1).dtype == torch.float32


def test_exact_is_float32() -> None:
    assert exact().dtype == torch.float32
