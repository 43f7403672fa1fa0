"""Read a llama2.c checkpoint and its tokenizer into transformers' own types.

The legacy checkpoint is seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len)
and then float32 tensors, each kind stacked over layers; a positive vocab_size says that the head is tied.
It rotates neighbouring pairs of channels (Meta's convention), transformers rotates a head's two halves: the
rows of q and k are reordered once here. The tokenizer is a sentencepiece BPE flattened to (score, bytes).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HEADER = struct.Struct("<7i")
FIRST_BYTE_ID, BYTE_IDS = 3, 256  # ids 0 to 2 are <unk>, <s>, </s>; then one id for each byte


@dataclass(frozen=True)
class Piece:
    """One entry of the flattened sentencepiece vocabulary."""

    score: float
    text: str


def read_model(data: bytes) -> LlamaForCausalLM:
    """A float32 Llama from the bytes of a legacy checkpoint; every byte must be accounted for."""
    dim, hidden, layers, heads, kv_heads, vocab, length = HEADER.unpack_from(data)
    config = LlamaConfig(
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=abs(vocab),
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=vocab > 0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(state_dict(data, config), strict=False)
    if unexpected or any(name != "lm_head.weight" for name in missing):
        raise ValueError(f"llama2.c checkpoint does not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model


def state_dict(data: bytes, config: LlamaConfig) -> dict[str, Tensor]:
    """transformers' names for the checkpoint's stacked tensors."""
    values = np.frombuffer(data, dtype="<f4", offset=HEADER.size)
    position = 0

    def take(*shape: int) -> Tensor:
        nonlocal position
        count = int(np.prod(shape))
        if position + count > values.size:
            raise ValueError(f"llama2.c checkpoint ends inside a tensor of shape {shape}")
        taken = values[position : position + count].reshape(shape)
        position += count
        return torch.from_numpy(taken.copy())

    dim, hidden, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    head_dim = dim // config.num_attention_heads
    kv_dim = head_dim * config.num_key_value_heads
    tensors = {"model.embed_tokens.weight": take(config.vocab_size, dim)}
    stacked = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": halves(take(layers, dim, dim), config.num_attention_heads),
        "self_attn.k_proj": halves(take(layers, kv_dim, dim), config.num_key_value_heads),
        "self_attn.v_proj": take(layers, kv_dim, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    tensors["model.norm.weight"] = take(dim)
    take(2, config.max_position_embeddings, head_dim // 2)  # the rotary table, recomputed by transformers
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = take(config.vocab_size, dim)
    if position != values.size:
        raise ValueError(f"llama2.c checkpoint has {values.size - position} floats after its last tensor")
    for name, stack in stacked.items():
        for index, tensor in enumerate(stack):
            tensors[f"model.layers.{index}.{name}.weight"] = tensor.contiguous()
    return tensors


def halves(stack: Tensor, heads: int) -> Tensor:
    """Reorder a head's output rows from interleaved pairs to two halves  # [layers, out, in]."""
    layers, rows, columns = stack.shape
    pairs = stack.view(layers, heads, rows // heads // 2, 2, columns)
    return pairs.transpose(2, 3).reshape(layers, rows, columns)


def read_tokenizer(data: bytes, vocabulary: int, length: int) -> PreTrainedTokenizerFast:
    """A fast tokenizer that encodes as llama2.c does: dummy space, merges by score, bytes as fallback."""
    pieces = tuple(read_pieces(data, vocabulary))
    ids = {piece.text: index for index, piece in enumerate(pieces)}
    if len(ids) != vocabulary:
        raise ValueError(f"the llama2.c tokenizer has {len(ids)} distinct pieces, expected {vocabulary}")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids, merges=merges(pieces, ids), unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )


def read_pieces(data: bytes, vocabulary: int) -> Iterator[Piece]:
    """The vocabulary in id order, special and byte pieces under the names that sentencepiece gives them."""
    position = 4  # an int32 with the longest piece's length comes first
    for index in range(vocabulary):
        score, size = struct.unpack_from("<fi", data, position)
        raw = data[position + 8 : position + 8 + size]
        if size < 0 or len(raw) != size:
            raise ValueError(f"the llama2.c tokenizer ends inside piece {index}")
        position += 8 + size
        if index < FIRST_BYTE_ID:
            yield Piece(score, ("<unk>", "<s>", "</s>")[index])
        elif index < FIRST_BYTE_ID + BYTE_IDS:
            yield Piece(score, f"<0x{index - FIRST_BYTE_ID:02X}>")
        else:
            yield Piece(score, raw.decode("utf-8").replace(" ", "▁"))
    if position != len(data):
        raise ValueError(f"the llama2.c tokenizer has {len(data) - position} bytes after its last piece")


def merges(pieces: tuple[Piece, ...], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that joins to a piece, best score first: the order llama2.c merges in."""
    found: list[tuple[float, int, int, tuple[str, str]]] = []
    for piece in pieces[FIRST_BYTE_ID + BYTE_IDS :]:
        for cut in range(1, len(piece.text)):
            left, right = piece.text[:cut], piece.text[cut:]
            if left in ids and right in ids:
                found.append((-piece.score, ids[left], ids[right], (left, right)))
    return [pair for *_, pair in sorted(found)]
