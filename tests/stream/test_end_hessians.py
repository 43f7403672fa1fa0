"""Second moments of embedding and head against transformers' own states and gradients, in both passes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quantriage.model.site import End
from quantriage.stream.block_hessians import block_hessians
from quantriage.stream.end_hessians import EndHessians
from quantriage.stream.loss_hessians import FLOOR
from small_models import Saved, probes, save, some_tokens, stream_of

TOKENS = some_tokens(4)


def sums_of(saved: Saved, spill: Path, state_bytes: int) -> tuple[tuple[End, ...], EndHessians]:
    model, model_map = saved.open()
    stream = stream_of(model, model_map, TOKENS, spill, state_bytes)
    sums = EndHessians(model_map.ends, torch.device("cpu"))
    wanted = {0: model_map.in_block(0)}
    block_hessians(stream, wanted, 5, lambda *_: None, ends=sums)
    return model_map.ends, sums


def moments(saved: Saved) -> tuple[Tensor, Tensor]:
    """E[w h h^T] at the head and E[g g^T] at the embedding, by hooks and one backward pass."""
    whole, seen = saved.whole, {}
    scale = getattr(whole.get_input_embeddings(), "embed_scale", torch.tensor(1.0))
    embedded = (nn.functional.embedding(TOKENS.tokens, whole.get_input_embeddings().weight) * scale).detach()
    embedded.requires_grad_(True)
    hook = whole.get_output_embeddings().register_forward_pre_hook(lambda _, x: seen.update(h=x[0]))
    logits = whole(inputs_embeds=embedded).logits
    hook.remove()
    drawn = probes(whole, TOKENS.tokens, torch.Generator().manual_seed(5))
    (gradient,) = torch.autograd.grad(logits, embedded, drawn.view_as(logits))
    # rows are taken two sequences of 16 and ten rows at a time
    squares = torch.cat(
        [part + FLOOR * part.mean() for half in drawn.square().sum(1).split(32) for part in half.split(10)]
    )
    h, g = seen["h"].detach().flatten(0, 1), gradient.flatten(0, 1)
    return (h * squares.unsqueeze(1)).T @ h, g.T @ g


def scaled(matrix: Tensor) -> Tensor:
    return matrix / matrix.diagonal().mean()


@pytest.mark.parametrize("state_bytes", [1 << 30, 0])
def test_head_and_embedding(llama: Saved, tmp_path: Path, state_bytes: int) -> None:
    ends, sums = sums_of(llama, tmp_path, state_bytes)
    assert [(end.name, end.category) for end in ends] == [
        ("model.embed_tokens", "embedding"),
        ("lm_head", "head"),
    ]
    head, embedding = moments(llama)
    for end, expected in zip(ends, (embedding, head), strict=True):
        torch.testing.assert_close(sums.of(end).value(), scaled(expected), rtol=1e-3, atol=1e-4)
    assert sums.of(ends[0]).tokens == TOKENS.tokens.numel()


def test_a_tied_table_has_the_sum_of_both(tmp_path: Path) -> None:
    tied = save("llama", tmp_path / "tied", tie_word_embeddings=True)
    (end,), sums = sums_of(tied, tmp_path, 1 << 30)
    assert (end.name, end.category, end.shape) == ("model.embed_tokens", "embedding and head", (100, 32))
    expected = scaled(sum(moments(tied)))
    torch.testing.assert_close(sums.of(end).value(), expected, rtol=1e-3, atol=1e-4)


def test_both_passes_give_the_same_bits(llama: Saved, tmp_path: Path) -> None:
    ends, resident = sums_of(llama, tmp_path, 1 << 30)
    _, streamed = sums_of(llama, tmp_path, 0)
    for end in ends:
        assert torch.equal(resident.of(end).value(), streamed.of(end).value())
