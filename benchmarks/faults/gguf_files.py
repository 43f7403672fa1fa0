"""A draft as a llama.cpp file, without a tokenizer: Q4_0 and Q8_0 of integer schemes, or any block type."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from torch import Tensor

from benchmarks.faults.block_weights import BlockWeight, NormalFloat, Rounded
from benchmarks.faults.draft import Draft
from quantriage.formats.gguf_blocks import BlockFields, write_fields
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme

_K_BLOCK = 256
_GGUF_OF_SCHEME = {"w4s-g32": "Q4_0", "w8s-g32": "Q8_0"}  # the same values, block for block
_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_GGUF_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(draft: Draft, folder: Path) -> Path:
    """A llama.cpp file of Q4_0 or Q8_0 blocks, without a tokenizer."""
    folder.mkdir(parents=True)
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    _gguf_settings(writer, draft.config)
    tied = bool(draft.config.get("tie_word_embeddings"))
    for name, tensor in draft.weights.items():
        if name == "lm_head.weight" and tied:
            continue
        module = name.removesuffix(".weight")
        order = _gguf_rows(module, tensor, draft.config)
        if module in draft.rounded:
            data, kind = _blocks(draft.rounded[module], order)
            writer.add_tensor(_gguf_name(name), data, raw_dtype=GGMLQuantizationType[kind])
        else:
            writer.add_tensor(_gguf_name(name), (tensor if order is None else tensor[order]).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for edit in draft.after:
        edit(path)
    return path


def k_quants(kind: str, fallback: str) -> Callable[[Tensor, Scheme], Rounded]:
    """A rounder to a k-quant; rows that its blocks do not divide get `fallback`, as in llama.cpp."""

    def rounder(weight: Tensor, scheme: Scheme) -> Rounded:  # noqa: ARG001 - the kind is the scheme
        return BlockWeight.of(weight, kind if weight.shape[1] % _K_BLOCK == 0 else fallback)

    return rounder


def _blocks(weight: Rounded, order: Tensor | None) -> tuple[Any, str]:
    """Bytes [out, bytes of a row], and their type."""
    assert not isinstance(weight, NormalFloat)
    if isinstance(weight, QuantizedTensor):
        kind = _GGUF_OF_SCHEME[str(weight.scheme)]
        fields = BlockFields(weight.codes.reshape(-1, 32), weight.scale.reshape(-1, 1).float())
    else:
        kind, fields = weight.kind, weight.fields
    data = write_fields(kind, fields).reshape(weight.shape[0], -1)
    return np.ascontiguousarray((data if order is None else data[order]).numpy()), kind


def _gguf_rows(module: str, tensor: Tensor, config: Mapping[str, object]) -> Tensor | None:
    """llama.cpp keeps rotary pairs side by side: the order of rows of q and k, None for others."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(module.rpartition(".")[2])
    if heads is None:
        return None
    count = config[heads]
    assert isinstance(count, int)
    return torch.arange(tensor.shape[0]).view(count, 2, -1).transpose(1, 2).reshape(-1)


def _gguf_name(name: str) -> str:
    if name in _GGUF_OUTER:
        return _GGUF_OUTER[name]
    _, _, block, *module = name.removesuffix(".weight").split(".")
    return f"blk.{block}.{_GGUF_NAMES['.'.join(module)]}.weight"


def _gguf_settings(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    heads, width = config["num_attention_heads"], config["hidden_size"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(config["vocab_size"])
