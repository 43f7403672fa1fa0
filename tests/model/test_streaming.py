"""A model run block by block gives what the whole model gives."""

from pathlib import Path

import pytest
import torch

from quantriage.formats.checkpoint import open_checkpoint
from quantriage.model.causal import CausalModel
from small_models import VOCABULARY, Saved, save, some_tokens

# The same products in the same order; what may differ is the attention kernel that an explicit mask selects
# and the order in which experts are added up, a few units in the last place of logits of size ten.
ROUNDING = 1e-5


def streamed_logits(model: CausalModel, tokens: torch.Tensor) -> torch.Tensor:
    with model.embedding():
        hidden, calls = model.start(tokens)
    for index in range(model.block_count):
        with torch.no_grad():
            hidden = model.run_block(model.load_block(index), hidden, calls[index])
    with torch.no_grad(), model.head():
        return model.logits(hidden.flatten(0, 1)).view(*tokens.shape, VOCABULARY)


def assert_same_logits(saved: Saved) -> None:
    model, _ = saved.open()
    tokens = some_tokens(2).tokens
    with torch.no_grad():
        whole = saved.whole(tokens).logits
    assert whole.abs().max() > 1.0
    torch.testing.assert_close(streamed_logits(model, tokens), whole, atol=ROUNDING, rtol=ROUNDING)


def test_streamed_logits_are_the_whole_models(saved: Saved) -> None:
    assert_same_logits(saved)


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_tied_embeddings_need_no_tensor_of_their_own(name: str, tmp_path: Path) -> None:
    tied = save(name, tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in tied.tensors()
    assert_same_logits(tied)


def test_the_head_is_in_memory_only_while_asked_for(llama: Saved) -> None:
    model, _ = llama.open()
    hidden = torch.ones(3, 32)
    with model.head():
        assert model.logits(hidden).isfinite().all()
    with pytest.raises(AssertionError, match="head"):  # torch would compute noise
        model.logits(hidden)


def test_a_bfloat16_head_is_what_autocast_makes_of_the_float32_one(llama: Saved) -> None:
    model, _ = llama.open()
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad(), model.head(dtype), torch.autocast("cpu", torch.bfloat16):
            found.append(model.logits(hidden))
    assert torch.equal(*found)


def test_used_tensors_are_the_whole_checkpoint(saved: Saved) -> None:
    model, _ = saved.open()
    assert set(model.used_tensors()) == set(saved.tensors())


def test_the_export_names_the_class_that_transformers_wrote(saved: Saved) -> None:
    model = CausalModel(open_checkpoint(saved.folder))
    assert [model.architecture] == saved.whole.config.architectures
