"""Scores of embedding and head against transformers' logits, and its gradient at the embedding."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quantriage.diagnose.end_scores import EndScores
from quantriage.diagnose.fisher import FisherScores, fisher_scores
from quantriage.methods.block_rounding import nearest_blocks
from quantriage.numerics.schemes import Scheme
from small_models import Saved, probes, save, some_tokens, stream_of

TOKENS = some_tokens(6)
SCHEMES = (Scheme.named("Q4_0"), Scheme.named("Q8_0"))
COARSE = SCHEMES[0]


def scores_of(saved: Saved, spill: Path) -> FisherScores:
    model, model_map = saved.open()
    menus = {end.name: SCHEMES for end in model_map.ends}
    return fisher_scores(stream_of(model, model_map, TOKENS, spill), menus, 5, ends=model_map.ends)


def head_kl(saved: Saved, scheme: Scheme) -> float:
    """Mean KL of the logits that a rounded head makes of the same final states."""
    head, seen = saved.whole.get_output_embeddings(), {}
    hook = head.register_forward_pre_hook(lambda _, x: seen.update(h=x[0]))
    with torch.no_grad():
        before = saved.whole(TOKENS.tokens).logits[:, :-1].log_softmax(-1)
        weight = nearest_blocks(head.weight.detach(), scheme).dequantize()
        after = (seen["h"][:, :-1] @ weight.T).log_softmax(-1)
    hook.remove()
    return float((before.exp() * (before - after)).sum(-1).mean())


def embedding_levels(saved: Saved, scheme: Scheme) -> tuple[float, float]:
    """Half the mean square of g . de, by token and by sequence, from one backward pass of transformers."""
    table = saved.whole.get_input_embeddings().weight.detach()
    embedded = nn.functional.embedding(TOKENS.tokens, table).requires_grad_(True)
    logits = saved.whole(inputs_embeds=embedded).logits
    drawn = probes(saved.whole, TOKENS.tokens, torch.Generator().manual_seed(5))
    (gradient,) = torch.autograd.grad(logits, embedded, drawn.view_as(logits))
    change: Tensor = nearest_blocks(table, scheme).dequantize() - table
    effect = (gradient * change[TOKENS.tokens]).sum(-1)
    count = TOKENS.tokens.numel()
    return float(effect.square().sum() / 2 / count), float(effect.sum(1).square().sum() / 2 / count)


def test_a_head_costs_the_kl_it_makes(llama: Saved, tmp_path: Path) -> None:
    scores = scores_of(llama, tmp_path)
    for scheme in SCHEMES:
        expected = head_kl(llama, scheme)
        assert expected > 0
        assert scores.kl["lm_head", scheme] == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert scores.kl["lm_head", COARSE] > 50 * scores.kl["lm_head", SCHEMES[1]]


def test_of_a_large_vocabulary_the_likeliest_rows_stand_for_all(llama: Saved, tmp_path: Path) -> None:
    model, model_map = llama.open()
    head = model_map.ends[1]
    scores = {}
    for rows in (60, 100):
        found = EndScores(model, (head,), {head.name: SCHEMES}, rows)
        stream = stream_of(model, model_map, TOKENS, tmp_path)
        stream.forward()
        found.at_head(stream)
        scores[rows] = found.totals()[2]["lm_head", COARSE]
    assert scores[100] == pytest.approx(head_kl(llama, COARSE), rel=1e-3)
    assert scores[60] != scores[100]
    assert scores[60] == pytest.approx(scores[100], rel=0.3)


def test_an_embedding_costs_what_its_gradient_says(llama: Saved, tmp_path: Path) -> None:
    scores = scores_of(llama, tmp_path)
    levels = [embedding_levels(llama, scheme) for scheme in SCHEMES]
    above, below = (sum(level[n] for level in levels) for n in (1, 0))
    for scheme, (token, sequence) in zip(SCHEMES, levels, strict=True):
        key = ("model.embed_tokens", scheme)
        assert scores.per_token[key] == pytest.approx(token, rel=1e-3)
        assert scores.per_sequence[key] == pytest.approx(sequence, rel=1e-3)
        assert scores.kl[key] == pytest.approx((token * above / below * sequence) ** 0.5, rel=1e-3)
        assert scores.errors[key].relative > 0


def test_a_tied_table_costs_both(tmp_path: Path) -> None:
    tied = save("llama", tmp_path / "tied", tie_word_embeddings=True)
    scores = scores_of(tied, tmp_path)
    key = ("model.embed_tokens", COARSE)
    token, _ = embedding_levels(tied, COARSE)
    assert scores.per_token[key] == pytest.approx(token + head_kl(tied, COARSE), rel=1e-3)


def test_a_scale_between_table_and_first_block_counts(tmp_path: Path) -> None:
    """Gemma multiplies what it looks up by the root of its width: errors with it."""
    gemma = save("gemma3_text", tmp_path / "gemma", tie_word_embeddings=False)
    scores = scores_of(gemma, tmp_path)
    table = gemma.whole.get_input_embeddings().weight.detach()
    embedded = (nn.functional.embedding(TOKENS.tokens, table) * 32**0.5).requires_grad_(True)
    logits = gemma.whole(inputs_embeds=embedded).logits
    drawn = probes(gemma.whole, TOKENS.tokens, torch.Generator().manual_seed(5))
    (gradient,) = torch.autograd.grad(logits, embedded, drawn.view_as(logits))
    change = (nearest_blocks(table, COARSE).dequantize() - table) * 32**0.5
    effect = (gradient * change[TOKENS.tokens]).sum(-1)
    expected = float(effect.square().sum() / 2 / TOKENS.tokens.numel())
    assert scores.per_token["model.embed_tokens", COARSE] == pytest.approx(expected, rel=1e-2)
