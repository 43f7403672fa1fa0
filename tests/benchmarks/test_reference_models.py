"""The benchmarks' model builders on tiny models: llama2.c's own arithmetic, and a function that stays."""

import math
import struct

import pytest
import torch
from benchmarks.llama2c import read_model, read_tokenizer
from benchmarks.rescaling import agreement, rescale_in_place
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, LENGTH = 16, 24, 2, 4, 2, 40, 12
HEAD = DIM // HEADS
SHAPES = {
    "embed": (VOCAB, DIM),
    "norm1": (LAYERS, DIM),
    "q": (LAYERS, DIM, DIM),
    "k": (LAYERS, KV_HEADS * HEAD, DIM),
    "v": (LAYERS, KV_HEADS * HEAD, DIM),
    "o": (LAYERS, DIM, DIM),
    "norm2": (LAYERS, DIM),
    "w1": (LAYERS, HIDDEN, DIM),
    "w2": (LAYERS, DIM, HIDDEN),
    "w3": (LAYERS, HIDDEN, DIM),
    "norm": (DIM,),
    "rotary": (2, LENGTH, HEAD // 2),
}


def checkpoint() -> tuple[bytes, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    header = struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, LENGTH)
    return header + b"".join(t.numpy().tobytes() for t in tensors.values()), tensors


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight


def rotated(x: Tensor, position: int) -> Tensor:
    """Neighbouring channels are one complex number, turned by its frequency: Meta's convention."""
    out = x.clone()
    for head in range(0, len(x), HEAD):
        for i in range(0, HEAD, 2):
            angle = position * 10000.0 ** (-i / HEAD)
            a, b = x[head + i], x[head + i + 1]
            out[head + i] = a * math.cos(angle) - b * math.sin(angle)
            out[head + i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out


def slow_logits(w: dict[str, Tensor], tokens: list[int]) -> Tensor:
    """llama2.c's forward pass in float64, one token and one head at a time."""
    keys: list[list[Tensor]] = [[] for _ in range(LAYERS)]
    values: list[list[Tensor]] = [[] for _ in range(LAYERS)]
    logits = []
    for position, token in enumerate(tokens):
        x = w["embed"][token]
        for i in range(LAYERS):
            h = normed(x, w["norm1"][i])
            q = rotated(w["q"][i] @ h, position)
            keys[i].append(rotated(w["k"][i] @ h, position))
            values[i].append(w["v"][i] @ h)
            parts = []
            for head in range(HEADS):
                mine = slice(head * HEAD, (head + 1) * HEAD)
                group = head * KV_HEADS // HEADS
                theirs = slice(group * HEAD, (group + 1) * HEAD)
                scores = torch.stack([q[mine] @ k[theirs] for k in keys[i]]) / math.sqrt(HEAD)
                seen = torch.stack([v[theirs] for v in values[i]])
                parts.append(torch.softmax(scores, 0) @ seen)
            x = x + w["o"][i] @ torch.cat(parts)
            h = normed(x, w["norm2"][i])
            x = x + w["w2"][i] @ (torch.nn.functional.silu(w["w1"][i] @ h) * (w["w3"][i] @ h))
        logits.append(w["embed"] @ normed(x, w["norm"]))
    return torch.stack(logits)


def test_a_llama2c_checkpoint_computes_what_llama2c_computes() -> None:
    data, tensors = checkpoint()
    tokens = [1, 7, 7, 39, 0, 12, 3, 25]
    with torch.no_grad():
        ours = read_model(data).double()(torch.tensor([tokens])).logits[0]
    expected = slow_logits({name: t.double() for name, t in tensors.items()}, tokens)
    # transformers computes the norms and rotary angles in float32 whatever the model's dtype
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("change", [-4, 4])
def test_a_checkpoint_of_another_length_is_refused(change: int) -> None:
    data, _ = checkpoint()
    with pytest.raises(ValueError, match=r"llama2\.c checkpoint"):
        read_model(data[:change] if change < 0 else data + bytes(change))


def vocabulary() -> bytes:
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(bytes([i]) for i in range(256))]
    merged = [b" ", b"a", b"b", b"c", b"ab", b" a", b"bc", b"abc"]
    scores = [0.0] * len(pieces) + [-9.0, -9.0, -9.0, -9.0, -2.0, -3.0, -1.0, -4.0]
    entries = zip(scores, pieces + merged, strict=True)
    return struct.pack("<i", 6) + b"".join(struct.pack("<fi", s, len(p)) + p for s, p in entries)


def test_the_tokenizer_merges_by_score_and_falls_back_to_bytes() -> None:
    tokenizer = read_tokenizer(vocabulary(), 267, 12)
    space, a, ab, space_a, bc = 259, 260, 263, 264, 265
    # the best score first: "bc" (-1) before "ab" (-2), so " a" (-3) is left to join
    assert tokenizer("abc").input_ids == [1, space_a, bc]
    assert tokenizer("ab").input_ids == [1, space, ab]
    assert tokenizer("aé").input_ids == [1, space_a, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer("").input_ids == [1]
    for text in ("abc ab", "aé日b"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer.convert_ids_to_tokens(a) == "a"


def test_rescaling_moves_every_weight_and_no_logit() -> None:
    config = LlamaConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=50,
    )
    torch.manual_seed(0)
    original = LlamaForCausalLM(config).eval()
    rescaled = LlamaForCausalLM(config).eval()
    rescaled.load_state_dict(original.state_dict())
    rescale_in_place(rescaled, seed=1)
    tokens = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    # weights stored in float32 move by half a unit in the last place each
    assert agreement(original, rescaled, tokens).function < 1e-6
    for (name, before), after in zip(original.named_parameters(), rescaled.parameters(), strict=True):
        kept = name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
        assert torch.equal(before, after) == kept, name
