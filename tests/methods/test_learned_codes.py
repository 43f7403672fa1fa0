"""What moves in learning, in every type: its start, its value by gguf-py, its gradients by differences."""

import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from textbook_gptq import random_weight
from torch import Tensor

from quantriage.diagnose.fisher import nearest
from quantriage.formats.gguf_layouts import LAYOUTS
from quantriage.methods.block_rounding import nearest_blocks
from quantriage.methods.learned_codes import LearnedCodes, Rounded
from quantriage.numerics.block_tensor import BlockTensor
from quantriage.numerics.block_types import BLOCK_TYPES
from quantriage.numerics.schemes import Scheme

INTEGERS = ("w4a-g32", "w3s-channel", "w8s-tensor")
every_scheme = pytest.mark.parametrize("name", [*BLOCK_TYPES, *INTEGERS])


def rounded_of(name: str, weight: Tensor) -> Rounded:
    scheme = Scheme.named(name, "float16")
    return nearest_blocks(weight, scheme) if scheme.in_blocks else nearest(weight, scheme)


def read(stored: Rounded) -> Tensor:
    """By upstream, where the type has one."""
    if isinstance(stored, BlockTensor):
        return torch.from_numpy(dequantize(stored.raw.numpy(), GGMLQuantizationType[stored.kind]))
    return stored.dequantize()


def latents_at(name: str, weight: Tensor) -> tuple[Tensor, LearnedCodes]:
    """Codes [out, in], and the same weight with latents on them."""
    rounded = rounded_of(name, weight)
    learned = LearnedCodes(rounded.dequantize(), rounded)
    return learned.codes().view(rounded.shape), learned


@every_scheme
def test_nothing_moved_is_nothing_changed(name: str) -> None:
    weight = random_weight(1, 6, 256)
    rounded = rounded_of(name, weight)
    _, learned = latents_at(name, weight)
    torch.testing.assert_close(learned.value(), read(rounded), rtol=1e-6, atol=1e-7)
    stored = learned.quantized()
    assert torch.equal(read(stored), read(rounded))
    if isinstance(stored, BlockTensor) and isinstance(rounded, BlockTensor):
        assert torch.equal(stored.raw, rounded.raw)


@every_scheme
def test_what_moved_is_stored_as_it_was_valued(name: str) -> None:
    """But for the rounding of scales to float16."""
    weight = random_weight(2, 6, 256)
    before, learned = latents_at(name, weight)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        learned.latent += 2.0 * torch.randn(learned.latent.shape, generator=draw)
        learned.log += 0.1 * torch.randn(learned.log.shape, generator=draw)
    learned.clamp()
    assert (learned.codes().view(before.shape) != before).float().mean() > 0.3
    found = read(learned.quantized())
    largest = weight.abs().amax()
    torch.testing.assert_close(found, learned.value(), rtol=1e-3, atol=float(1e-3 * largest))
    assert not torch.allclose(found, weight, atol=float(0.1 * largest))


@every_scheme
def test_latents_start_between_code_and_weight(name: str) -> None:
    weight = random_weight(4, 6, 256)
    rounded = rounded_of(name, weight)
    on_codes = LearnedCodes(rounded.dequantize(), rounded).latent
    learned = LearnedCodes(weight, rounded)
    assert torch.equal(learned.codes(), on_codes.round())
    away = (learned.latent - on_codes).view(weight.shape)
    assert float(away.abs().max()) <= 0.3 + 1e-3
    assert float(away.abs().mean()) > 0.05
    # a code further up is a larger value where the scale is positive, and a smaller one where it is not
    moved = torch.sign(weight - rounded.dequantize()) * torch.sign(_slope(rounded))
    told = (away.abs() > 0.01) & (moved != 0)
    assert torch.equal(torch.sign(away)[told], moved[told])


def _slope(rounded: Rounded) -> Tensor:
    """What one code more does to the value, [out, in]: its sign is the scale's."""
    learned = LearnedCodes(rounded.dequantize(), rounded)
    here = learned.value()
    top = learned.codes().amax() == learned.codes()
    with torch.no_grad():
        learned.latent += torch.where(top, -1.0, 1.0)
    return (learned.value() - here) * torch.where(top, -1.0, 1.0).view(here.shape)


@pytest.mark.parametrize("name", ["w3a-g16", "Q4_0", "Q4_1", "IQ4_NL", "Q3_K", "Q4_K", "IQ4_XS"])
def test_gradients_are_those_of_small_steps(name: str) -> None:
    """Straight through the rounding; a latent's to a positive factor, which Adam does not see."""
    weight, pull = random_weight(5, 4, 256), random_weight(6, 4, 256)
    rounded = rounded_of(name, weight)
    learned = LearnedCodes(weight, rounded)
    learned.differentiate(pull)
    assert learned.latent.grad is not None
    assert learned.log.grad is not None

    epsilon = 1e-3
    with torch.no_grad():
        learned.log += epsilon
        up = learned.value()
        learned.log -= 2 * epsilon
        down = learned.value()
        learned.log += epsilon
    by_factor = ((up - down) / (2 * epsilon) * pull).view(*learned.log.shape, -1).sum(-1)
    torch.testing.assert_close(
        learned.log.grad, by_factor, rtol=2e-3, atol=2e-3 * float(by_factor.abs().max())
    )

    slope = _slope(rounded)
    wanted = (slope * pull).view(learned.latent.shape)
    clear = wanted.abs() > 1e-6
    assert torch.equal(torch.sign(learned.latent.grad)[clear], torch.sign(wanted)[clear])
    even = name not in LAYOUTS or LAYOUTS[name].table is None
    if even:
        torch.testing.assert_close(learned.latent.grad[clear], wanted[clear], rtol=2e-2, atol=1e-5)


def test_a_block_of_zeros_stays() -> None:
    weight = torch.zeros(2, 256)
    weight[1, :32] = 1.0
    for name in ("Q4_0", "Q4_K", "IQ4_XS", "w4a-g32"):
        rounded = rounded_of(name, weight)
        learned = LearnedCodes(weight, rounded)
        assert bool(learned.latent.isfinite().all())
        learned.differentiate(torch.ones(2, 256))
        assert bool(learned.latent.grad.isfinite().all())
        torch.testing.assert_close(learned.value(), rounded.dequantize())


def test_a_weight_that_no_token_reached_has_no_gradient() -> None:
    _, learned = latents_at("w4a-g32", random_weight(7, 2, 64))
    learned.differentiate(torch.ones(2, 64))
    learned.differentiate(None)
    assert learned.latent.grad is None
    assert learned.log.grad is None
