"""GGUF files of a few kilobytes, written with gguf-py's writer: one per architecture that tests read.

Where transformers ignores a key of the file and takes the default of its config class (positions of GPT-2,
head width of Qwen3, width of Qwen3-MoE's experts), the files have that default.
"""

import random
import string
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType as Kind

WIDTH, HEADS, KV_HEADS, HIDDEN, LAYERS, EXPERTS = 64, 4, 2, 96, 2, 3
POSITIONS, QWEN3_HEAD, EXPERT_HIDDEN = 1024, 128, 768


def vocabulary() -> tuple[list[str], list[str]]:
    """Byte-level tokens and two merges."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + ["Ġ", "<|end|>"]
    return [*letters, "th", "the"], ["t h", "th e"]


def text(path: Path, seed: int = 0) -> Path:
    """1500 words of five of the vocabulary's letters; no two seeds share a passage."""
    draw = random.Random(seed)
    words = ("".join(draw.choices(string.ascii_lowercase, k=5)) for _ in range(1500))
    path.write_text(" ".join(words), encoding="utf-8")
    return path


def write(
    path: Path,
    architecture: str,
    kind: Kind = Kind.F32,
    head: bool = False,
    deviation: float = 1.0,
    file_type: int | None = None,
    more: dict[str, np.ndarray] | None = None,
) -> Path:
    """A random model of `architecture`; matrices are stored as `kind`, vectors as float32. more: by name."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.add_block_count(LAYERS)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    tokens, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 27 + [3] + [1] * (len(tokens) - 28))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(27)
    writer.add_bos_token_id(27)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(1e-5)
        shapes = gpt2_shapes(len(tokens))
    else:
        writer.add_vocab_size(len(tokens))
        writer.add_head_count_kv(KV_HEADS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10000.0)
        writer.add_rope_dimension_count(WIDTH // HEADS)
        shapes = llama_shapes(len(tokens), architecture)
    if architecture == "gemma2":
        writer.add_sliding_window(POSITIONS)
    if architecture.startswith(("qwen3", "gemma2")):
        writer.add_key_length(head_width(architecture))
        writer.add_value_length(head_width(architecture))
    if architecture == "qwen3moe":
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(EXPERT_HIDDEN)
    if head:
        shapes["output.weight"] = (len(tokens), WIDTH)
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = generator.standard_normal(shape, dtype=np.float32)
        if len(shape) > 1:
            values *= np.float32(deviation)
        if architecture == "gemma2" and name.endswith("norm.weight"):
            values = 1 + values / 16  # as converters leave them: one added to what the model holds
        stored = kind if len(shape) > 1 else Kind.F32
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def head_width(architecture: str) -> int:
    """Width of one attention head."""
    return QWEN3_HEAD if architecture == "qwen3" else WIDTH // HEADS


def llama_shapes(vocabulary_size: int, architecture: str) -> dict[str, tuple[int, ...]]:
    """GGUF names and shapes of a llama-like model."""
    wide, narrow = head_width(architecture) * HEADS, head_width(architecture) * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary_size, WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    for i in range(LAYERS):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (WIDTH,),
            "ffn_norm.weight": (WIDTH,),
            "attn_q.weight": (wide, WIDTH),
            "attn_k.weight": (narrow, WIDTH),
            "attn_v.weight": (narrow, WIDTH),
            "attn_output.weight": (WIDTH, wide),
        }
        if architecture == "qwen2":
            block |= {"attn_q.bias": (wide,), "attn_k.bias": (narrow,), "attn_v.bias": (narrow,)}
        if architecture == "gemma2":
            block |= {"post_attention_norm.weight": (WIDTH,), "post_ffw_norm.weight": (WIDTH,)}
        if architecture in ("qwen3", "qwen3moe"):
            block |= {
                "attn_q_norm.weight": (head_width(architecture),),
                "attn_k_norm.weight": (head_width(architecture),),
            }
        if architecture == "qwen3moe":
            block |= {
                "ffn_gate_inp.weight": (EXPERTS, WIDTH),
                "ffn_gate_exps.weight": (EXPERTS, EXPERT_HIDDEN, WIDTH),
                "ffn_up_exps.weight": (EXPERTS, EXPERT_HIDDEN, WIDTH),
                "ffn_down_exps.weight": (EXPERTS, WIDTH, EXPERT_HIDDEN),
            }
        else:
            block |= {
                "ffn_gate.weight": (HIDDEN, WIDTH),
                "ffn_up.weight": (HIDDEN, WIDTH),
                "ffn_down.weight": (WIDTH, HIDDEN),
            }
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def gpt2_shapes(vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """GGUF names and shapes of a GPT-2."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary_size, WIDTH),
        "position_embd.weight": (POSITIONS, WIDTH),
        "output_norm.weight": (WIDTH,),
        "output_norm.bias": (WIDTH,),
    }
    matrices = {
        "attn_qkv": (3 * WIDTH, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_up": (4 * WIDTH, WIDTH),
        "ffn_down": (WIDTH, 4 * WIDTH),
    }
    for i in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            shapes |= {f"blk.{i}.{norm}.weight": (WIDTH,), f"blk.{i}.{norm}.bias": (WIDTH,)}
        for name, shape in matrices.items():
            shapes |= {f"blk.{i}.{name}.weight": shape, f"blk.{i}.{name}.bias": shape[:1]}
    return shapes
