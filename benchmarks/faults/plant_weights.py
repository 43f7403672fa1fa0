"""Faults of weights before they are rounded: order, place, and values that a tool lost on its way."""

from collections.abc import Callable

import torch

from benchmarks.faults.draft import Draft, generator, matrices
from benchmarks.faults.sites import MODULES, QUERY_KEY, site
from quantriage.diagnose.fisher import nearest
from quantriage.numerics.schemes import Scheme

Plant = Callable[[Draft], None]
TWO_BITS = "w2a-g32"
TIGHT = 0.9  # standard deviations that clipping leaves


def transpose(module: str) -> Plant:
    """A square matrix the other way round."""
    return lambda draft: draft.set_weight(module, draft.weight(module).T)


def rotary(draft: Draft) -> None:
    """Rows of every query and key in pairs instead of halves."""
    for module in QUERY_KEY:
        heads = "num_attention_heads" if module.endswith("q_proj") else "num_key_value_heads"
        weight, count = draft.weight(module), draft.config[heads]
        assert isinstance(count, int)
        order = torch.arange(weight.shape[0]).view(count, 2, -1).transpose(1, 2).reshape(-1)
        draft.set_weight(module, weight[order])


def swap(one: str, other: str) -> Plant:
    """Two tensors under each other's names."""

    def plant(draft: Draft) -> None:
        first, second = draft.weight(one), draft.weight(other)
        draft.set_weight(one, second)
        draft.set_weight(other, first)

    return plant


def exchange_blocks(one: int, other: int) -> Plant:
    """Two whole blocks under each other's numbers, norms and all."""

    def plant(draft: Draft) -> None:
        for module in (*MODULES, "input_layernorm", "post_attention_layernorm"):
            swap(site(one, module), site(other, module))(draft)

    return plant


def other_model(draft: Draft) -> None:
    """Matrices of the same size and spread that have nothing to do with the reference."""
    for number, module in enumerate(matrices(draft.weights)):
        weight = draft.weight(module)
        noise = torch.randn(weight.shape, generator=generator(number)) * weight.norm(dim=1, keepdim=True)
        draft.set_weight(module, noise / weight.shape[1] ** 0.5)


def permute_columns(module: str) -> Plant:
    """Columns in the order in which GPTQ visits them, the index lost."""

    def plant(draft: Draft) -> None:
        weight = draft.weight(module)
        draft.set_weight(module, weight[:, weight.norm(dim=0).argsort(descending=True)])

    return plant


def flush_outlier(module: str) -> Plant:
    """The model's own largest column of a matrix set to zero."""

    def plant(draft: Draft) -> None:
        weight = draft.weight(module).clone()
        weight[:, weight.norm(dim=0).argmax()] = 0
        draft.set_weight(module, weight)

    return plant


def clip(module: str) -> Plant:
    """Large weights cut off."""

    def plant(draft: Draft) -> None:
        weight = draft.weight(module)
        limit = TIGHT * weight.std(dim=1, keepdim=True)
        draft.set_weight(module, torch.minimum(torch.maximum(weight, -limit), limit))

    return plant


def two_bits(index: int) -> Plant:
    """A block that was rounded to two bits before it was stored in more."""

    def plant(draft: Draft) -> None:
        for module in MODULES:
            name = site(index, module)
            draft.set_weight(name, nearest(draft.weight(name), Scheme.parse(TWO_BITS)).dequantize())

    return plant
