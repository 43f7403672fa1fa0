"""Folds found by trial: which parameters, and that transformers computes the same in another scaling."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from quantriage.model.causal import CausalModel
from quantriage.model.folds import Fold, find_folds, scaled_weights
from small_models import CONFIGS, save, some_tokens

ATTENTION = {
    "self_attn.v_proj": {"self_attn.o_proj"},
    "input_layernorm": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
}
GATED = {"mlp.up_proj": {"mlp.down_proj"}}
BEHIND = {"post_attention_layernorm": {"mlp.gate_proj", "mlp.up_proj"}}
# What is in no table has no fold: gates, queries and keys, norms of queries and keys, norms that feed the
# residual stream, a GPT-2's fused projection and what comes before its nonlinearity, experts' own inputs.
EXPECTED = {
    "llama": ATTENTION | GATED | BEHIND,
    "qwen2": ATTENTION | GATED | BEHIND,
    "qwen3": ATTENTION | GATED | BEHIND,
    "gemma3_text": ATTENTION | GATED | {"pre_feedforward_layernorm": {"mlp.gate_proj", "mlp.up_proj"}},
    "gpt2": {"ln_1": {"attn.c_attn"}, "ln_2": {"mlp.c_fc"}},
    "mixtral": ATTENTION | {"post_attention_layernorm": {"mlp.gate", "mlp.experts.gate_up_proj"}},
    "qwen3_moe": ATTENTION | GATED | BEHIND,  # of its first block, which has no experts
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_read_by_what(name: str, tmp_path: Path) -> None:
    model, _ = save(name, tmp_path).open()
    folds = [fold for fold in find_folds(model) if fold.block == 0]
    found = {
        next(iter(fold.producers)).removesuffix(".weight"): {
            c.removesuffix(".weight") for c in fold.consumers
        }
        for fold in folds
    }
    assert found == EXPECTED[name]
    assert {fold.offset for fold in folds if "norm" in fold.name} <= {1.0 if name == "gemma3_text" else 0.0}


def test_query_heads_share_the_channels_of_their_value_head(tmp_path: Path) -> None:
    model, _ = save("qwen2", tmp_path).open()
    (fold,) = (fold for fold in find_folds(model) if fold.name == "1.self_attn.v_proj.weight")
    first, second = torch.arange(8), torch.arange(8, 16)  # 4 query heads, 2 value heads of 8
    assert fold.channels.equal(torch.cat([first, first, second, second]))
    assert list(fold.producers) == ["self_attn.v_proj.weight", "self_attn.v_proj.bias"]


def drawn(folds: tuple[Fold, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {f.name: torch.exp(2 * torch.rand(f.width, generator=generator) - 1) for f in folds}


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_computes_the_same_from_the_scaled_tensors(name: str, tmp_path: Path) -> None:
    saved = save(name, tmp_path)
    model, _ = saved.open()
    folds = find_folds(model)
    view = scaled_weights(model, folds, drawn(folds))
    scaled = {name: view.get(name).contiguous() for name in view.factors}
    assert min(float((value / view.inner.get(name)).std()) for name, value in scaled.items()) > 0.1
    tokens = some_tokens().tokens
    saved.edit(lambda tensors: tensors.update(scaled))
    eager = {"experts_implementation": "eager"}  # transformers' other one has no float64
    saved.whole.config._experts_implementation = "eager"
    with torch.no_grad():
        expected = saved.whole.double()(tokens).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, **eager)(tokens).logits
    # the scaled tensors are float32: 6e-8 of each weight
    torch.testing.assert_close(found, expected, atol=2e-6 * float(expected.abs().max()), rtol=0)


def test_the_view_is_a_model_like_any_other(tmp_path: Path) -> None:
    """Read block by block, the scaled tensors give the states of the original."""
    model, _ = save("llama", tmp_path).open()
    folds = find_folds(model)
    scaled = model.with_weights(scaled_weights(model, folds, drawn(folds)))
    assert isinstance(scaled, CausalModel)
    hidden, calls = model.start_from_noise(8)
    with torch.no_grad():
        for index in range(model.block_count):
            expected, found = (
                m.run_block(m.load_block(index), hidden, calls[index]) for m in (model, scaled)
            )
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_fold_without_scales_changes_nothing(tmp_path: Path) -> None:
    model, _ = save("llama", tmp_path).open()
    folds = find_folds(model)
    first = folds[0]
    view = scaled_weights(model, folds, {first.name: torch.full((first.width,), 2.0)})
    assert set(view.factors) == {
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
    }
    name = "model.layers.0.self_attn.o_proj.weight"
    assert view.get(name).equal(view.inner.get(name) * 2)
    assert view.get("model.layers.1.mlp.up_proj.weight").equal(
        view.inner.get("model.layers.1.mlp.up_proj.weight")
    )
