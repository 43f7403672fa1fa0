"""Forward with replaced weights and backward, against the whole model in memory."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quantriage.model.capture import WeightCall
from quantriage.model.site import Site
from quantriage.stream.stream import BlockGradients, Stream
from small_models import (
    VOCABULARY,
    Saved,
    probes,
    some_tokens,
    stream_of,
    whole_model_gradients,
)

ROUNDING = 1e-5  # as for the streamed logits: another attention kernel, the same sums
TOKENS = some_tokens(5)  # an odd number, so that the last batch is smaller


def logits(stream: Stream) -> Tensor:
    with torch.no_grad(), stream.model.head():
        parts = [stream.model.logits(h.flatten(0, 1)) for _, h in stream.final_states()]
    return torch.cat(parts).view(*TOKENS.tokens.shape, VOCABULARY)


def replacement(site: Site) -> Tensor:
    generator = torch.Generator().manual_seed(len(site.name) + site.block)
    return torch.randn(site.shape, generator=generator) * 0.2


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
def test_replaced_weights_give_the_whole_model_with_those_weights(
    saved_models: dict[str, Saved], name: str, tmp_path: Path
) -> None:
    saved = saved_models[name]
    model, model_map = saved.open()
    chosen = [model_map.in_block(0)[1], *model_map.in_block(2)]
    changed = copy.deepcopy(saved.whole)
    with torch.no_grad():
        before = changed(TOKENS.tokens).logits
        for site in chosen:
            weight = changed.get_submodule(site.name).weight
            weight.copy_(replacement(site).T if site.transposed else replacement(site))
        after = changed(TOKENS.tokens).logits
    stream = stream_of(model, model_map, TOKENS, tmp_path)
    stream.forward({site.name: lambda site=site: replacement(site) for site in chosen})
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(logits(stream), after, atol=ROUNDING, rtol=ROUNDING)
    stream.forward()  # the checkpoint itself is untouched
    torch.testing.assert_close(logits(stream), before, atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_gradients_are_those_of_whole_model_autograd(
    saved_models: dict[str, Saved], name: str, tmp_path: Path
) -> None:
    saved = saved_models[name]
    model, model_map = saved.open()
    stream = stream_of(model, model_map, TOKENS, tmp_path)
    seen = backward(stream, seed=3)
    drawn = probes(saved.whole, TOKENS.tokens, torch.Generator().manual_seed(3))
    names = [site.name for site in model_map.sites]
    expected = whole_model_gradients(saved.whole, names, TOKENS.tokens, drawn)
    assert seen.keys() == expected.keys()
    for site, (inputs, gradients) in seen.items():
        torch.testing.assert_close(inputs, expected[site].inputs, atol=ROUNDING, rtol=ROUNDING)
        # Gradients are sums over the vocabulary and all later blocks; their error grows with their size.
        scale = float(expected[site].gradients.abs().max())
        torch.testing.assert_close(gradients, expected[site].gradients, atol=1e-4 * scale, rtol=0)


def test_a_zero_budget_gives_the_same_bits_as_a_large_one(llama: Saved, tmp_path: Path) -> None:
    model, model_map = llama.open()
    found = []
    for budget in (0, 10_000, 1 << 30):
        folder = tmp_path / str(budget)
        stream = stream_of(model, model_map, TOKENS, folder, budget)
        found.append(backward(stream, seed=1))
        assert (budget < 1 << 30) == folder.exists()
        stream.states.clear()
        assert not folder.exists() or list(folder.iterdir()) == []
    for other in found[1:]:
        for site, pair in found[0].items():
            assert all(torch.equal(left, right) for left, right in zip(pair, other[site], strict=True))


def test_progress_counts_the_blocks(llama: Saved, tmp_path: Path) -> None:
    model, model_map = llama.open()
    stream = stream_of(model, model_map, TOKENS, tmp_path)
    told: list[tuple[str, int, int]] = []
    stream.progress = lambda stage, done, total: told.append((stage, done, total))
    stream.forward(stage="walk")
    assert told == [("walk", 1, 3), ("walk", 2, 3), ("walk", 3, 3)]


def backward(stream: Stream, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """By site: inputs and output gradients [sequences, length, width] of a streamed backward pass."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    modules = {(site.block, site.parameter): site.name for site in stream.sites}

    def on_block(index: int, _: nn.Module, gradients: BlockGradients) -> None:
        def keep(start: int, call: WeightCall, gradient: Tensor) -> None:
            shape = (*stream.rows(start).shape, -1)
            pair = call.input.detach().reshape(shape), gradient.reshape(shape)
            found.setdefault(modules[index, call.parameter], []).append(pair)

        gradients.run(keep)

    stream.forward(keep=True)
    stream.head_gradients(torch.Generator().manual_seed(seed))
    stream.backward(on_block)
    return {
        name: (torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))
        for name, parts in found.items()
    }
