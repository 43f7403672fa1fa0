"""Channel scales against what they minimise, what they undo, and how they are stored."""

import pytest
import torch
from torch import Tensor

from quantriage.methods.channel_scales import channel_scales, exactly_stored, fold_scales


def drawn(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    importance, lengths = torch.randn(2, 40, generator=generator).exp().unbind()
    return importance, lengths


@pytest.mark.parametrize("power", [2.0, 4.0, 6.0])
def test_step_times_cost_is_least(power: float) -> None:
    """(sum (c s)^p)^(2/p) * sum h / s^2 against every step away from the scales found."""
    importance, lengths = (v.double() for v in drawn(0))

    def cost(scales: Tensor) -> Tensor:
        return ((lengths * scales).pow(power).sum().pow(2 / power)) * (importance / scales.square()).sum()

    scales = channel_scales(importance, lengths, 1 / (power + 2))
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        step = (0.1 * torch.randn(40, generator=generator, dtype=torch.float64)).exp()
        assert cost(scales * step) > cost(scales)
    logs = scales.log().requires_grad_(True)
    (slope,) = torch.autograd.grad(cost(logs.exp()).log(), logs)
    assert float(slope.abs().max()) < 1e-9


def test_ends_of_the_family() -> None:
    importance, lengths = drawn(2)
    for exponent, even in ((0.0, lengths), (0.5, importance.sqrt().reciprocal())):
        scaled = channel_scales(importance, lengths, exponent) * even
        torch.testing.assert_close(scaled, scaled.mean().expand(40))


def test_a_rescaling_of_the_channels_is_undone() -> None:
    importance, lengths = drawn(3)
    factors = torch.randn(40, generator=torch.Generator().manual_seed(4)).exp()
    before = channel_scales(importance, lengths)
    after = channel_scales(importance / factors.square(), lengths * factors) * factors
    torch.testing.assert_close(after / after.mean(), before / before.mean())


def test_channels_that_carry_nothing_keep_their_scale() -> None:
    importance, lengths = drawn(5)
    importance[3], lengths[7] = 0.0, 0.0
    scales = channel_scales(importance, lengths)
    assert scales[3] == 1
    assert scales[7] == 1
    others = torch.ones(40, dtype=torch.bool)
    others[[3, 7]] = False
    torch.testing.assert_close(scales[others], channel_scales(importance[others], lengths[others]))
    assert channel_scales(torch.zeros(4), lengths[:4]).equal(torch.ones(4))


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_divided_vector_is_a_number_of_its_dtype(offset: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(6)
    vector = (torch.randn(200, generator=generator) + 0.5 - offset).to(dtype)
    wanted = torch.randn(200, generator=generator).exp()
    scales = exactly_stored(vector, offset, wanted, dtype)
    stored = ((vector.float() + offset) / scales - offset).to(dtype).double()
    product = (stored + offset) * scales
    torch.testing.assert_close(product.float(), vector.float() + offset, atol=0.0, rtol=3e-7)
    moved = (scales / wanted - 1).abs()
    assert float(moved.median()) < 2 * torch.finfo(dtype).eps
    assert float(moved.max()) > 0


def test_a_quotient_that_float16_cannot_hold_is_left_alone() -> None:
    vector = torch.tensor([4e4, 1e-7, 0.0, 1.0])
    scales = exactly_stored(vector, 0.0, torch.tensor([0.1, 1e3, 5.0, 2.0]), torch.float16)
    assert scales.tolist() == [1.0, 1.0, 5.0, 2.0]


def test_pivots_stand_for_what_feedback_leaves() -> None:
    """Independent inputs: pivots are the diagonal. Of two channels that repeat each other one is cheap."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.rand(16, generator=generator) + 0.5
    inputs = torch.randn(4096, 16, generator=generator) * torch.linspace(0.5, 2, 16)
    independent = torch.diag(inputs.square().mean(0))
    channels = torch.arange(16)
    expected = channel_scales(independent.diagonal(), lengths)
    torch.testing.assert_close(fold_scales([independent], lengths, channels), expected, rtol=0.02, atol=0.0)
    inputs[:, 3] = inputs[:, 12] + 0.01 * inputs[:, 3]
    scales = fold_scales([inputs.T @ inputs / 4096], lengths, channels)
    ratio = scales / channel_scales(inputs.square().mean(0), lengths)
    assert float(ratio[[3, 12]].amin() / ratio.median()) < 0.8
    assert float((ratio[[0, 1, 2, 4, 5]] / ratio.median()).sub(1).abs().max()) < 0.05


def test_inputs_that_share_channels_count_together() -> None:
    """Two query heads behind one value head, and two experts behind one norm, are sums of second moments."""
    generator = torch.Generator().manual_seed(8)
    lengths = torch.rand(4, generator=generator) + 0.5
    heads = torch.rand(8, generator=generator) + 0.5
    shared = fold_scales([torch.diag(heads)], lengths, torch.tensor([0, 1, 0, 1, 2, 3, 2, 3]))
    sums = heads[[0, 1, 4, 5]] + heads[[2, 3, 6, 7]]
    torch.testing.assert_close(shared, channel_scales(sums, lengths), rtol=0.02, atol=0.0)
    experts = fold_scales([torch.diag(heads[:4]), torch.diag(heads[4:])], lengths, torch.arange(4))
    torch.testing.assert_close(experts, channel_scales(heads[:4] + heads[4:], lengths), rtol=0.02, atol=0.0)


def test_a_rescaling_is_undone_with_pivots_too() -> None:
    generator = torch.Generator().manual_seed(9)
    inputs = torch.randn(256, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    lengths, factors = torch.rand(24, generator=generator) + 0.5, torch.randn(24, generator=generator).exp()
    channels = torch.arange(24)
    before = fold_scales([inputs.T @ inputs], lengths, channels)
    other = inputs / factors
    after = fold_scales([other.T @ other], lengths * factors, channels) * factors
    torch.testing.assert_close(after / after.mean(), before / before.mean(), rtol=1e-3, atol=0.0)
