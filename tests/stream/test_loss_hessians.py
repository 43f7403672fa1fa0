"""Loss-weighted Hessians from a stream, against a plain computation from whole-model autograd."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quantriage.model.site import Site
from quantriage.stream.hessian import HessianSum
from quantriage.stream.loss_hessians import FLOOR, loss_hessians, token_weights
from quantriage.stream.site_products import InputKey, input_key
from quantriage.stream.stream import BlockGradients, Stream
from small_models import Saved, probes, some_tokens, stream_of, whole_model_gradients

TOKENS = some_tokens(4)
BATCH = 2  # of `stream_of`


def streamed(stream: Stream, weighted: bool) -> dict[tuple[int, InputKey], HessianSum]:
    found: dict[tuple[int, InputKey], HessianSum] = {}

    def on_block(index: int, _: nn.Module, gradients: BlockGradients) -> None:
        sites = tuple(site for site in stream.sites if site.block == index)
        for key, total in loss_hessians(gradients, sites, weighted).inputs.items():
            found[index, key] = total

    stream.forward(keep=True)
    stream.head_gradients(torch.Generator().manual_seed(5))
    stream.backward(on_block)
    return found


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_hessians_are_the_plain_sums(
    saved_models: dict[str, Saved], name: str, weighted: bool, tmp_path: Path
) -> None:
    saved = saved_models[name]
    model, model_map = saved.open()
    found = streamed(stream_of(model, model_map, TOKENS, tmp_path), weighted)
    drawn = probes(saved.whole, TOKENS.tokens, torch.Generator().manual_seed(5))
    seen = whole_model_gradients(saved.whole, [s.name for s in model_map.sites], TOKENS.tokens, drawn)
    readers: dict[tuple[int, InputKey], list[Site]] = {}
    for site in model_map.sites:
        readers.setdefault((site.block, input_key(site)), []).append(site)
    assert found.keys() == readers.keys()
    for key, sites in readers.items():
        inputs = seen[sites[0].name].inputs.double()
        squares = sum(seen[site.name].gradients.double().square().sum(dim=-1) for site in sites)
        assert isinstance(squares, Tensor)
        expected = naive(inputs, squares if weighted else None)
        assert found[key].tokens == TOKENS.tokens.numel()
        # Entries are around 1; float32 gradients enter squared.
        torch.testing.assert_close(found[key].value().double(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("run", [4, 1024])
def test_outputs_are_the_plain_second_moments(
    saved_models: dict[str, Saved], run: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantriage.stream.hessian.RUN", run)
    saved = saved_models["llama"]
    model, model_map = saved.open()
    stream = stream_of(model, model_map, TOKENS, tmp_path)
    found: dict[str, tuple[Tensor, ...]] = {}

    def on_block(index: int, _: nn.Module, gradients: BlockGradients) -> None:
        sums = loss_hessians(gradients, model_map.in_block(index), outputs=True)
        found.update({name: total.values() for name, total in sums.outputs.items()})

    stream.forward(keep=True)
    stream.head_gradients(torch.Generator().manual_seed(5))
    stream.backward(on_block)
    drawn = probes(saved.whole, TOKENS.tokens, torch.Generator().manual_seed(5))
    seen = whole_model_gradients(saved.whole, [s.name for s in model_map.sites], TOKENS.tokens, drawn)
    for site in model_map.sites:
        rows = seen[site.name].gradients.double().flatten(0, 1)
        whole = rows.T @ rows
        runs = found[site.name]
        assert [len(moment) for moment in runs] == [run] * (site.shape[0] // run) or len(runs) == 1
        most = max(whole[a : a + len(m), a : a + len(m)].diagonal().mean() for a, m in offsets(runs))
        for start, moment in offsets(runs):
            part = slice(start, start + len(moment))
            torch.testing.assert_close(moment.double(), whole[part, part] / most, atol=1e-3, rtol=1e-3)


def offsets(runs: tuple[Tensor, ...]) -> list[tuple[int, Tensor]]:
    return [(sum(len(m) for m in runs[:place]), moment) for place, moment in enumerate(runs)]


def naive(inputs: Tensor, squares: Tensor | None) -> Tensor:
    """inputs [sequences, length, in], squares [sequences, length]: w = squares / batch mean + FLOOR."""
    total = torch.zeros(inputs.shape[-1], inputs.shape[-1], dtype=torch.float64)
    for start in range(0, len(inputs), BATCH):
        rows = inputs[start : start + BATCH].flatten(0, 1)
        weights = torch.ones(len(rows), dtype=torch.float64)
        if squares is not None:
            batch = squares[start : start + BATCH].flatten()
            weights = batch / batch.mean() + FLOOR
        total += torch.einsum("n,ni,nj->ij", weights, rows, rows)
    return total / total.diagonal().mean()


def test_experts_are_summed_over_the_tokens_that_reach_them(
    saved_models: dict[str, Saved], tmp_path: Path
) -> None:
    model, model_map = saved_models["mixtral"].open()
    stream = stream_of(model, model_map, TOKENS, tmp_path)
    found = streamed(stream, weighted=True)
    for index in range(model_map.blocks):
        experts = {input_key(s) for s in model_map.in_block(index) if s.parameter.endswith("gate_up_proj")}
        assert len(experts) == 4
        # Each token goes to two of the four experts.
        assert sum(found[index, key].tokens for key in experts) == 2 * TOKENS.tokens.numel()


def test_an_expert_that_no_token_reaches_gives_zeros(saved_models: dict[str, Saved], tmp_path: Path) -> None:
    model, model_map = saved_models["qwen3_moe"].open()
    found = streamed(stream_of(model, model_map, some_tokens(1, 2), tmp_path), weighted=True)
    assert found.keys() == {(site.block, input_key(site)) for site in model_map.sites}
    unseen = [total.value() for total in found.values() if total.tokens == 0]
    assert unseen  # two tokens reach at most four of eight experts
    assert all(not value.any() for value in unseen)


def test_token_weights_have_the_stated_mean_and_floor() -> None:
    squares = torch.tensor([0.0, 1.0, 2.0, 100.0])
    weights = token_weights(squares)
    assert float(weights.mean()) == pytest.approx(1 + FLOOR)
    assert float(weights.min()) == FLOOR
    assert torch.equal(token_weights(torch.zeros(3)), torch.ones(3))
