"""Scale gradients against whole-model autograd; learning lowers the KL; what is kept changes nothing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from quantriage.diagnose.fisher import nearest
from quantriage.errors import UsageError
from quantriage.methods.learned_scales import LearnSettings, ScaleLearner
from quantriage.model.site import Site
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme
from small_models import Saved, some_tokens, stream_of

TOKENS = some_tokens(4)
BATCH = 2  # of `stream_of`


def learner(
    saved: Saved, scheme: str, spill: Path, state_bytes: int = 1 << 30
) -> tuple[ScaleLearner, tuple[Site, ...]]:
    model, model_map = saved.open()
    rounded = {
        site.name: nearest(_weight(saved, site), Scheme.parse(scheme, "float32")) for site in model_map.sites
    }
    stream = stream_of(model, model_map, TOKENS, spill, state_bytes)
    vectors = [name for index in range(model_map.blocks) for name in model.block_vectors(index).values()]
    found = ScaleLearner(stream, model_map.sites, lambda site: rounded[site.name], 0, vectors, torch.float32)
    found.prepare()
    return found, model_map.sites


def _weight(saved: Saved, site: Site) -> Tensor:
    weight = saved.whole.get_parameter(f"{site.name}.weight").detach()
    return (weight.T if site.transposed else weight).contiguous()


@pytest.mark.parametrize("scheme", ["w3a-g16", "w4s-channel", "w8s-tensor"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradients_are_those_of_the_whole_model(
    saved_models: dict[str, Saved], name: str, scheme: str, tmp_path: Path
) -> None:
    saved = saved_models[name]
    learning, sites = learner(saved, scheme, tmp_path)
    started = {site.name: learning.quantized(site) for site in sites}
    kl = learning.step(1, 1e-4)
    logs = {n: torch.zeros_like(q.scale, requires_grad=True) for n, q in started.items()}
    replaced = {}
    for site in sites:
        weight = _dequantized(started[site.name], logs[site.name])
        replaced[f"{site.name}.weight"] = weight.T if site.transposed else weight
    assert {name.rsplit(".", 1)[1] for name in learning.vectors} <= {"weight", "bias"}
    assert len(learning.vectors) == {"llama": 2, "gpt2": 8}[name] * saved.open()[1].blocks
    for vector in learning.vectors:
        original = saved.whole.get_parameter(vector).detach()
        logs[vector] = torch.zeros_like(original, requires_grad=True)
        replaced[vector] = original * logs[vector].exp()
    tokens = TOKENS.tokens[:BATCH]
    with torch.no_grad():
        target = torch.log_softmax(saved.whole(tokens).logits, dim=-1)
    logits = functional_call(saved.whole, replaced, (tokens,)).logits
    found = torch.log_softmax(logits, dim=-1)
    loss = (target.exp() * (target - found)).sum(dim=-1).mean()
    assert kl == pytest.approx(loss.item(), rel=1e-3)
    gradients = torch.autograd.grad(loss, list(logs.values()))
    for moved, expected in zip(logs, gradients, strict=True):
        first_moment = learning.state[moved][1]  # a tenth of the gradient after one step
        torch.testing.assert_close(first_moment * 10, expected, rtol=2e-3, atol=1e-6)


def _dequantized(quantized: QuantizedTensor, logs: Tensor) -> Tensor:
    scale = (quantized.scale * logs.exp()).unsqueeze(-1)
    codes = quantized.codes.float().view(*quantized.scale.shape, -1)
    zero = (
        quantized.scheme.grid.center if quantized.zero_point is None else quantized.zero_point.unsqueeze(-1)
    )
    return ((codes - zero) * scale).view(quantized.shape)


def test_learning_lowers_the_kl_on_its_text(llama: Saved, tmp_path: Path) -> None:
    learning, _ = learner(llama, "w3a-g16", tmp_path)
    settings = LearnSettings(steps=40, learning_rate=5e-3)
    losses = [learning.step(number, settings.rate(number)) for number in range(1, 41)]
    assert sum(losses[-2:]) < 0.8 * sum(losses[:2])  # two batches: an epoch


def test_experts_without_tokens_stay_as_they_are(saved_models: dict[str, Saved], tmp_path: Path) -> None:
    saved = saved_models["qwen3_moe"]
    model, model_map = saved.open()
    weights = model.checkpoint.weights
    rounded = {
        s.name: nearest(weights.get(f"{s.name}.weight").float(), Scheme.parse("w4a-g16"))
        for s in model_map.sites
    }
    stream = stream_of(model, model_map, some_tokens(2, 2), tmp_path)  # 4 tokens cannot reach every expert
    learning = ScaleLearner(stream, model_map.sites, lambda site: rounded[site.name])
    learning.prepare()
    learning.step(1, 1e-4)
    moved = {name for name, state in learning.state.items() if state[0].abs().max() > 0}
    experts = {s.name for s in model_map.sites if ".experts." in s.name}
    assert moved & experts
    assert experts - moved
    for site in model_map.sites:
        if site.name not in moved:
            assert torch.equal(learning.quantized(site).scale, rounded[site.name].scale)


def test_what_is_kept_between_steps_changes_nothing(llama: Saved, tmp_path: Path) -> None:
    results = []
    for state_bytes in (1 << 30, 0):
        learning, sites = learner(llama, "w4a-g32", tmp_path, state_bytes)
        for number in range(1, 4):
            learning.step(number, 1e-3)
        results.append({site.name: learning.quantized(site).scale for site in sites})
    for name, scale in results[0].items():
        assert torch.equal(scale, results[1][name])


def test_what_is_given_out_is_the_average_of_the_steps(llama: Saved, tmp_path: Path) -> None:
    """Weights 0.1 * 0.9^k backwards in time, the rest on where it started."""
    learning, sites = learner(llama, "w4a-g32", tmp_path)
    before = {site.name: learning.quantized(site).scale for site in sites}
    seen = []
    for number in (1, 2, 3):
        learning.step(number, 1e-2)
        seen.append({site.name: learning.state[site.name][0].clone() for site in sites})
    for site in sites:
        logs = sum(0.1 * 0.9 ** (2 - k) * of[site.name] for k, of in enumerate(seen))
        torch.testing.assert_close(learning.quantized(site).scale, before[site.name] * logs.exp())
        assert not torch.equal(learning.quantized(site).scale, before[site.name])
    for name in learning.vectors:
        original = llama.whole.get_parameter(name).detach()
        torch.testing.assert_close(learning.vector(name), original * learning.state[name][3].exp())
        assert not torch.equal(learning.vector(name), original)


def test_the_rate_rises_and_falls() -> None:
    settings = LearnSettings(steps=20, learning_rate=1.0, warmup=4)
    rates = [settings.rate(step) for step in range(1, 21)]
    assert rates[0] == pytest.approx(0.25)
    assert max(rates) == rates[3]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 0.01
    with pytest.raises(UsageError, match="1 or more"):
        LearnSettings(steps=0)
