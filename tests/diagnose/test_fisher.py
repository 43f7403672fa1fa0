"""Fisher scores against whole-model autograd with the same probes, and against the KL they predict."""

from pathlib import Path

import pytest
import torch

from quantriage.diagnose.change_scores import pool
from quantriage.diagnose.fisher import fisher_scores, nearest
from quantriage.diagnose.swap import swap_kl
from quantriage.numerics.schemes import Scheme
from small_models import Saved, probes, some_tokens, stream_of, whole_model_gradients

TOKENS = some_tokens(4)
SCHEMES = (Scheme.parse("w4a-g32"), Scheme.parse("w3s-channel"))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_scores_are_the_plain_formula(saved_models: dict[str, Saved], name: str, tmp_path: Path) -> None:
    saved = saved_models[name]
    model, model_map = saved.open()
    names = [site.name for site in model_map.sites]
    scores = fisher_scores(
        stream_of(model, model_map, TOKENS, tmp_path), dict.fromkeys(names, SCHEMES), seed=9, draws=2
    )
    assert scores.per_token.keys() == scores.kl.keys() == {(n, s) for n in names for s in SCHEMES}
    per_token = dict.fromkeys(scores.per_token, 0.0)
    per_sequence = dict.fromkeys(scores.per_token, 0.0)
    generator = torch.Generator().manual_seed(9)
    for _ in range(2):
        drawn = probes(saved.whole, TOKENS.tokens, generator)
        seen = whole_model_gradients(saved.whole, names, TOKENS.tokens, drawn)
        for site in model_map.sites:
            stored = saved.tensors()[f"{site.name}.weight"]
            weight = (stored.T if site.transposed else stored).contiguous()
            for scheme in SCHEMES:
                change = (nearest(weight, scheme).dequantize() - weight).double()
                gradients = seen[site.name].gradients.double()
                effect = ((seen[site.name].inputs.double() @ change.T) * gradients).sum(dim=-1)
                share = 0.5 / (2 * TOKENS.tokens.numel())
                per_token[site.name, scheme] += share * float(effect.square().sum())
                per_sequence[site.name, scheme] += share * float(effect.sum(dim=1).square().sum())
    # Squares of float32 gradients; sums over a sequence cancel, so their relative error is larger.
    assert scores.per_token == pytest.approx(per_token, rel=1e-3)
    assert scores.per_sequence == pytest.approx(per_sequence, rel=1e-2, abs=1e-4 * max(per_sequence.values()))


def test_many_draws_predict_the_true_kl_of_a_small_change(llama: Saved, tmp_path: Path) -> None:
    model, model_map = llama.open()
    scheme = Scheme.parse("w7a-g32")
    sites = model_map.in_block(1)
    menus = {site.name: (scheme,) for site in sites}
    stream = stream_of(model, model_map, TOKENS, tmp_path)
    true = swap_kl(stream, sites, menus, nearest)
    predicted = fisher_scores(stream, menus, seed=0, draws=100)
    # 100 draws of 4 sequences are 400 squares of about normal sums: a standard error of sqrt(2 / 400) = 7%
    # for one site. Three of them, and as much again for the terms beyond second order.
    for key, kl in true.items():
        assert predicted.per_sequence[key] == pytest.approx(kl, rel=0.3)
    total = sum(true.values())
    assert sum(predicted.per_sequence.values()) == pytest.approx(total, rel=0.12)
    assert sum(predicted.kl.values()) == pytest.approx(total, rel=0.12)


def test_pooling_keeps_one_ranking_and_takes_the_other_level() -> None:
    scheme, other = SCHEMES
    module_of = {"b0.up": "up", "b1.up": "up", "b0.down": "down"}
    per_token = {("b0.up", scheme): 1.0, ("b1.up", scheme): 3.0, ("b0.down", scheme): 0.0}
    per_sequence = {("b0.up", scheme): 4.0, ("b1.up", scheme): 4.0, ("b0.down", scheme): 0.0}
    per_token["b0.up", other], per_sequence["b0.up", other] = 5.0, 20.0
    # up at `scheme`: level (4 + 4) / (1 + 3) = 2, so 2 and 6, each averaged geometrically with 4.
    assert pool(per_token, per_sequence, module_of) == {
        ("b0.up", scheme): pytest.approx(8**0.5),
        ("b1.up", scheme): pytest.approx(24**0.5),
        ("b0.down", scheme): 0.0,
        ("b0.up", other): pytest.approx(20.0),
    }


def test_an_expert_without_tokens_costs_nothing(saved_models: dict[str, Saved], tmp_path: Path) -> None:
    model, model_map = saved_models["qwen3_moe"].open()
    menus = {site.name: (Scheme.parse("w4a-channel"),) for site in model_map.sites}
    scores = fisher_scores(stream_of(model, model_map, some_tokens(1, 2), tmp_path), menus, seed=0)
    assert scores.kl.keys() == {(name, schemes[0]) for name, schemes in menus.items()}
    assert 0.0 in scores.kl.values()
    assert max(scores.kl.values()) > 0
