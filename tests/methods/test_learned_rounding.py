"""Learned rounding against autograd with torch's own Adam; it lowers the error or changes nothing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from quantriage.diagnose.fisher import nearest
from quantriage.errors import UsageError
from quantriage.methods.learned_rounding import LearnedBlock, RoundingSettings, learn_block, output_metric
from quantriage.model.site import Site, read_site
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme
from quantriage.stream.stream import Stream
from small_models import Saved, some_tokens, stream_of

TOKENS = some_tokens(6)
SEED = 3


class Case:
    """The first block of a small model, rounded to nearest, with the reference's states around it."""

    def __init__(self, saved: Saved, scheme: str, spill: Path, index: int = 0) -> None:
        self.index = index
        model, model_map = saved.open()
        self.stream: Stream = stream_of(model, model_map, TOKENS, spill)
        self.stream.forward(keep=True)
        block = self.stream.load(index)
        form = Scheme.parse(scheme, "float32")
        self.originals = {s.name: read_site(block, s).clone() for s in model_map.in_block(index)}
        self.rounded: list[tuple[Site, QuantizedTensor]] = [
            (site, nearest(self.originals[site.name], form)) for site in model_map.in_block(index)
        ]
        self.vectors = {n: p.detach().clone() for n, p in block.named_parameters() if p.ndim == 1}
        draw = torch.randn(model.hidden_size, 40, generator=torch.Generator().manual_seed(1))
        self.metric = output_metric(draw @ draw.T)

    def states(self, start: int) -> tuple[Tensor, Tensor]:
        return self.stream.hidden(self.index, start), self.stream.hidden(self.index + 1, start)

    def learn(self, settings: RoundingSettings) -> LearnedBlock:
        return learn_block(
            self.stream,
            self.index,
            self.rounded,
            self.states,
            self.metric,
            settings,
            tuple(self.vectors),
            torch.float16,
            SEED,
        )


class StraightThrough(nn.Module):
    """A weight of latents that round and let gradients pass, written as anybody would."""

    def __init__(self, original: Tensor, rounded: QuantizedTensor) -> None:
        super().__init__()
        codes = rounded.codes.float().view(*rounded.scale.shape, -1)
        grid = rounded.scheme.grid
        self.zero = grid.center if rounded.zero_point is None else rounded.zero_point.unsqueeze(-1)
        self.start, self.shape, self.top = rounded.scale, rounded.shape, grid.levels - 1
        exact = original.view(codes.shape) / self.start.unsqueeze(-1) + self.zero
        self.latent = nn.Parameter(codes + (0.5 * (exact - codes)).clamp(-0.3, 0.3))
        self.log = nn.Parameter(torch.zeros_like(self.start))

    def codes(self) -> Tensor:
        return self.latent.round().clamp(0, self.top)

    def forward(self, _: Tensor) -> Tensor:
        codes = self.latent + (self.codes() - self.latent).detach()
        return ((codes - self.zero) * (self.start * self.log.exp()).unsqueeze(-1)).view(self.shape)


class Factor(nn.Module):
    """A vector whose entries move by factors."""

    def __init__(self, original: Tensor) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros_like(original))

    def forward(self, original: Tensor) -> Tensor:
        return original * self.log.exp()


@pytest.mark.parametrize("scheme", ["w3a-g16", "w4s-channel", "w2a-g32"])
def test_steps_are_those_of_autograd_and_adam(llama: Saved, scheme: str, tmp_path: Path) -> None:
    case = Case(llama, scheme, tmp_path)
    settings = RoundingSettings(steps=24, code_rate=0.03, scale_rate=0.002)
    found = case.learn(settings)
    assert found.after < found.before

    block = case.stream.load(0)
    weights = {}
    for site, rounded in case.rounded:
        linear = block.get_submodule(site.parameter.removesuffix(".weight"))
        weights[site.name] = StraightThrough(case.originals[site.name], rounded)
        register_parametrization(linear, "weight", weights[site.name], unsafe=True)
    factors = {name: Factor(vector) for name, vector in case.vectors.items()}
    for name, factor in factors.items():
        module, _, own = name.rpartition(".")
        register_parametrization(block.get_submodule(module), own, factor)
    groups = [
        {"params": [w.latent for w in weights.values()], "lr": settings.code_rate},
        {"params": [w.log for w in (*weights.values(), *factors.values())], "lr": settings.scale_rate},
    ]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.999), eps=1e-20)
    falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / settings.steps)
    generator, order = torch.Generator().manual_seed(SEED), []
    for _ in range(settings.steps):
        order = order or torch.randperm(len(case.stream.batches), generator=generator).tolist()
        hidden, wanted = case.states(case.stream.batches[order.pop()])
        out = case.stream.model.run_block(block, hidden, case.stream.call(0, len(hidden)))
        error = out - wanted
        adam.zero_grad()
        (0.5 * ((error @ case.metric) * error).sum(-1).mean()).backward()
        adam.step()
        falling.step()
        with torch.no_grad():
            for weight in weights.values():
                weight.latent.clamp_(-0.49, weight.top + 0.49)
    flipped = 0
    for site, rounded in case.rounded:
        expected, learned = weights[site.name], found.quantized[site.name]
        codes = expected.codes().view(expected.shape).to(torch.uint8)
        assert (codes != learned.codes).float().mean() < 0.001  # a latent on an edge may fall either way
        flipped += int((learned.codes != rounded.codes).sum())
        torch.testing.assert_close(learned.scale, expected.start * expected.log.exp(), rtol=1e-4, atol=0)
        assert (learned.zero_point is None) == (rounded.zero_point is None)
    assert flipped > 0
    assert found.vectors.keys() == {"input_layernorm.weight", "post_attention_layernorm.weight"}
    for name, vector in found.vectors.items():
        assert vector.dtype == torch.float16
        expected = factors[name](case.vectors[name])
        torch.testing.assert_close(vector.float(), expected, rtol=1e-3, atol=0)  # as float16 rounds
        assert not torch.allclose(expected, case.vectors[name], rtol=5e-3)


def test_what_got_worse_is_not_taken(llama: Saved, tmp_path: Path) -> None:
    case = Case(llama, "w4a-g32", tmp_path)
    found = case.learn(RoundingSettings(steps=3, code_rate=3.0, scale_rate=0.5))
    assert found.after == found.before
    assert not found.vectors
    for site, rounded in case.rounded:
        assert found.quantized[site.name] is rounded


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
def test_blocks_of_other_makes_learn(saved_models: dict[str, Saved], name: str, tmp_path: Path) -> None:
    case = Case(saved_models[name], "w3a-g16", tmp_path, 1)
    found = case.learn(RoundingSettings(steps=12, scale_rate=0.01))
    assert found.after < found.before
    for site, rounded in case.rounded:
        assert not torch.equal(found.quantized[site.name].scale, rounded.scale)
    assert found.vectors.keys() == case.vectors.keys()


def test_experts_learn(saved_models: dict[str, Saved], tmp_path: Path) -> None:
    model_map = saved_models["qwen3_moe"].open()[1]
    index = next(site.block for site in model_map.sites if ".experts." in site.name)
    case = Case(saved_models["qwen3_moe"], "w3a-g16", tmp_path, index)
    found = case.learn(RoundingSettings(steps=4, code_rate=0.05, scale_rate=0.01))
    assert found.after < found.before
    moved = {
        site.name
        for site, rounded in case.rounded
        if not torch.equal(found.quantized[site.name].scale, rounded.scale)
    }
    assert any(".experts." in name for name in moved)


def test_a_metric_of_no_gradients_counts_all_outputs_alike() -> None:
    assert torch.equal(output_metric(torch.zeros(3, 3)), torch.eye(3))
    metric = output_metric(torch.tensor([[4.0, 1.0], [1.0, 2.0]]))
    assert metric.diagonal().mean() == pytest.approx(1.3)
    assert metric[0, 1] == pytest.approx(1 / 3)


def test_no_steps_are_refused() -> None:
    with pytest.raises(UsageError, match="expected 1 or more"):
        RoundingSettings(steps=0)
