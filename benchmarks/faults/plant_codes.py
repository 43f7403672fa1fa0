"""Faults of codes, scales and zero points: planted in what is rounded, before a format writes it."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.faults.block_weights import (
    Rounded,
    exchanged,
    scale_of,
    scrambled,
    shifted,
    tightened,
    unfilled,
    with_scale,
)
from benchmarks.faults.draft import Draft, generator
from quantriage.diagnose.fisher import nearest
from quantriage.methods.gptq import Gptq
from quantriage.methods.protocol import SiteStatistics
from quantriage.numerics.quantized import QuantizedTensor

Plant = Callable[[Draft], None]
NOISE_RANK = 8  # tokens of noise that a layer was calibrated on
TIGHT = 0.35  # of a sound scale, in a layer that saturates
HIT = 3  # every third scale is hit where a fault need not take all


def _edit(module: str, change: Callable[[Rounded], Rounded]) -> Plant:
    def plant(draft: Draft) -> None:
        draft.rounded[module] = change(draft.rounded[module])

    return plant


def constant(module: str) -> Plant:
    """A packed tensor that was never filled."""
    return _edit(module, unfilled)


def scramble(module: str, share: float) -> Plant:
    """Bits of a part of the packed codes are damaged."""
    return _edit(module, lambda w: scrambled(w, share, generator(9)))


def set_scale(module: str, value: float) -> Plant:
    """Every third scale of some rows is `value`."""

    def change(weight: Rounded) -> Rounded:
        scale = scale_of(weight).clone()
        scale[::HIT, ::HIT] = value
        return with_scale(weight, scale)

    return _edit(module, change)


def zero_scales(module: str) -> Plant:
    """Scales that were never written."""
    return _edit(module, lambda w: with_scale(w, torch.zeros_like(scale_of(w))))


def scale_by(module: str, factor: float) -> Plant:
    """One wrong factor in all scales."""
    return _edit(module, lambda w: with_scale(w, scale_of(w) * factor))


def saturate(module: str) -> Plant:
    """Rounded with scales that are much too small."""

    def plant(draft: Draft) -> None:
        draft.rounded[module] = tightened(draft.rounded[module], draft.weight(module), TIGHT)

    return plant


def shift_zero(module: str) -> Plant:
    """Zero points one too large, as between the two versions of GPTQ."""

    def change(weight: Rounded) -> Rounded:
        assert isinstance(weight, QuantizedTensor)
        top = weight.scheme.grid.levels - 1
        return replace(weight, zero_point=(_zero(weight) + 1).clamp(max=top).to(torch.uint8))

    return _edit(module, change)


def lose_zero(module: str) -> Plant:
    """Zero points packed as zeros."""

    def change(weight: Rounded) -> Rounded:
        assert isinstance(weight, QuantizedTensor)
        return replace(weight, zero_point=torch.zeros_like(_zero(weight)))

    return _edit(module, change)


def lose_order(module: str) -> Plant:
    """Groups of columns of like size, read without the index that says which they are."""

    def plant(draft: Draft) -> None:
        weight = draft.weight(module)
        order = weight.norm(dim=0).argsort(descending=True)
        sorted_columns = nearest(weight[:, order], draft.schemes[module])
        draft.rounded[module] = replace(sorted_columns, codes=sorted_columns.codes[:, order.argsort()])

    return plant


def shift_groups(module: str) -> Plant:
    """Scales and zero points one group further on."""
    return _edit(module, shifted)


def exchange_scales(one: str, other: str) -> Plant:
    """Two modules with each other's scales and zero points."""

    def plant(draft: Draft) -> None:
        both = exchanged(draft.rounded[one], draft.rounded[other])
        draft.rounded[one], draft.rounded[other] = both

    return plant


def noise_calibrated(module: str) -> Plant:
    """Error feedback along inputs that never occur."""

    def plant(draft: Draft) -> None:
        draft.rounded[module] = calibrated(draft, module, NOISE_RANK, seed=1)

    return plant


def calibrate_experts_but(module: str) -> Plant:
    """Every expert's siblings went through error feedback, this one was rounded to nearest."""

    def plant(draft: Draft) -> None:
        stem, kind = module.partition(".experts.")[0], module.rpartition(".")[2]
        for name in list(draft.rounded):
            if name.startswith(f"{stem}.experts.") and name.endswith(kind) and name != module:
                draft.rounded[name] = calibrated(draft, name, 4 * draft.weight(name).shape[1], seed=2)

    return plant


def calibrated(draft: Draft, module: str, tokens: int, seed: int) -> QuantizedTensor:
    """GPTQ on random inputs with common directions, as activations have. Few tokens: noise."""
    weight = draft.weight(module)
    inputs = _inputs(weight.shape[1], tokens, seed)
    statistics = SiteStatistics(inputs.T @ inputs, tokens)
    return Gptq().quantize(weight, statistics, [draft.schemes[module]])[0].quantized


def _inputs(width: int, tokens: int, seed: int) -> Tensor:
    """Random inputs [tokens, width], strongly correlated."""
    drawn = generator(seed)
    directions = torch.randn(width // 4, width, generator=drawn)
    common = torch.randn(tokens, width // 4, generator=drawn) @ directions
    return common / width**0.5 + 0.3 * torch.randn(tokens, width, generator=drawn)


def _zero(weight: QuantizedTensor) -> Tensor:
    assert weight.zero_point is not None, "this fault needs stored zero points"
    return weight.zero_point
