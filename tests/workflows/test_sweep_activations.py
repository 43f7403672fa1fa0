"""Inputs rounded inside the stream equal hooks on the whole model, for plain, transposed and fused layers."""

from functools import partial
from pathlib import Path

import pytest
import torch

from quantriage.methods.smoothquant import round_tokens
from quantriage.workflows.sweep_activations import final_states_rounded
from quantriage.workflows.sweep_statistics import gather_inputs
from small_models import save, some_tokens, stream_of


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("scaled", [False, True])
def test_rounded_inputs_equal_hooks_on_the_whole_model(tmp_path: Path, name: str, scaled: bool) -> None:
    saved, tokens = save(name, tmp_path / "model"), some_tokens(sequences=2)
    model, found = saved.open()
    generator = torch.Generator().manual_seed(3)
    by_input: dict[tuple[int, int], torch.Tensor] = {}
    scales = {}
    for site in found.sites:
        key = site.block, site.input_group
        by_input.setdefault(key, torch.rand(site.shape[1], generator=generator) + 0.5)
        scales[site.name] = by_input[key] if scaled else None

    stream = stream_of(model, found, tokens, tmp_path / "spill")
    states = final_states_rounded(stream, {}, {n: partial(_same, s) for n, s in scales.items()}, "test")

    def rounded(scale, module, inputs):
        x = inputs[0]
        return (round_tokens(x) if scale is None else round_tokens(x / scale) * scale, *inputs[1:])

    for site in found.sites:
        owner = site.name if name == "llama" else f"transformer.{site.name.removeprefix('transformer.')}"
        saved.whole.get_submodule(owner).register_forward_pre_hook(partial(rounded, scales[site.name]))
    with torch.no_grad():
        expected = saved.whole(tokens.tokens).logits
    with model.head():
        got = torch.stack([model.logits(rows) for rows in states])
    # a value at a rounding boundary may fall to the other side: float32 products in another order
    assert float((got - expected).abs().mean()) < 2e-3 * float(expected.abs().mean())


def _same(value):
    return value


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_statistics_of_inputs_equal_those_of_recorded_inputs(tmp_path: Path, name: str) -> None:
    saved, tokens = save(name, tmp_path / "model"), some_tokens()
    model, found = saved.open()
    stream = stream_of(model, found, tokens, tmp_path / "spill")
    stream.embed()
    block = stream.load(0)
    statistics = gather_inputs(stream, 0, block, found.in_block(0))
    seen = {}
    site = found.in_block(0)[0]
    hook = saved.whole.get_submodule(site.name).register_forward_pre_hook(
        lambda _, inputs: seen.setdefault("x", inputs[0].reshape(-1, inputs[0].shape[-1]))
    )
    with torch.no_grad():
        saved.whole(tokens.tokens)
    hook.remove()
    rows = seen["x"]
    own = statistics[site.input_group, None]
    assert own.tokens == tokens.tokens.numel()  # once, though q, k and v read it
    second = rows.T @ rows
    assert torch.allclose(own.hessian, second / second.diagonal().mean(), rtol=1e-4, atol=1e-5)
    assert torch.allclose(own.mean_abs, rows.abs().mean(0), rtol=1e-5)
    assert torch.allclose(own.max_abs, rows.abs().amax(0), rtol=1e-6)
    apart = (own.sample[:, None] - rows).abs().amax(2)  # [sampled, rows]
    assert float(apart.amin(1).max()) < 1e-5
    if name == "mixtral":  # experts see the tokens routed to them, together two each
        experts = [s for (_, expert), s in statistics.items() if expert is not None]
        assert sum(s.tokens for s in experts) >= tokens.tokens.numel()
