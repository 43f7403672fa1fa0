"""A draft as files, in each of the formats of the bench."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.faults.draft import Draft
from quantriage.formats import compressed_config, compressed_tensors
from quantriage.formats.awq import AwqLayout
from quantriage.formats.gguf_blocks import BlockFields, write_fields
from quantriage.formats.gptq import GptqLayout, with_override
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme

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


@dataclass(frozen=True)
class Layout:
    """A format of the bench: the scheme of its healthy base, and how it is written. scheme None: dense."""

    name: str
    scheme: str | None
    write: Callable[[Draft, Path], Path]


def write_compressed(draft: Draft, folder: Path) -> Path:
    """compressed-tensors, pack-quantized."""
    tensors: dict[str, Tensor] = {}
    for module, weight in draft.rounded.items():
        tensors |= compressed_tensors.write(module, weight)
        if module in draft.column_group:
            tensors[f"{module}.weight_g_idx"] = draft.column_group[module].to(torch.int32)
    dense = [m for m in _linears(draft) if m not in draft.rounded]
    schemes = {module: weight.scheme for module, weight in draft.rounded.items()}
    return _folder(draft, folder, tensors, compressed_config.config(schemes, dense), torch.float16)


def write_gptq(draft: Draft, folder: Path) -> Path:
    """GPTQ v1 as AutoGPTQ and GPTQModel write it."""
    scheme = next(iter(draft.schemes.values()))
    layout = GptqLayout(4, 32, False, bool(draft.column_group), 1).with_scheme(scheme)
    config: Mapping[str, object] = {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": layout.bits,
        "group_size": layout.group_size,
        "sym": layout.symmetric,
        "desc_act": layout.act_order,
    }
    tensors: dict[str, Tensor] = {}
    for module, weight in draft.rounded.items():
        own = layout
        if weight.scheme != scheme:
            own, config = layout.with_scheme(weight.scheme), with_override(config, module, weight.scheme)
        tensors |= own.write(module, weight, draft.column_group.get(module))
    return _folder(draft, folder, tensors, config, torch.float16)


def write_awq(draft: Draft, folder: Path) -> Path:
    """AWQ, GEMM layout."""
    scheme = next(iter(draft.schemes.values()))
    layout = AwqLayout(32, False).with_scheme(scheme)
    size = getattr(scheme.granularity, "size", -1)
    layout = replace(layout, group_size=size)
    config = {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": size,
        "zero_point": not scheme.grid.symmetric,
    }
    tensors: dict[str, Tensor] = {}
    for module, weight in draft.rounded.items():
        tensors |= layout.write(module, weight)
    return _folder(draft, folder, tensors, config, torch.float16)


def write_dense(draft: Draft, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Unquantized, as a conversion leaves it."""
    return _folder(draft, folder, {}, None, dtype)


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
            kind = _GGUF_OF_SCHEME[str(draft.rounded[module].scheme)]
            data, number = _blocks(draft.rounded[module], kind, order), GGMLQuantizationType[kind]
            writer.add_tensor(_gguf_name(name), data, raw_dtype=number)
        else:
            writer.add_tensor(_gguf_name(name), (tensor if order is None else tensor[order]).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for edit in draft.after:
        edit(path)
    return path


def _blocks(weight: QuantizedTensor, kind: str, order: Tensor | None) -> Any:
    """Bytes [out, bytes of a row] of a symmetric weight in groups of 32."""
    rows = torch.arange(weight.shape[0]) if order is None else order
    fields = BlockFields(weight.codes[rows].reshape(-1, 32), weight.scale[rows].reshape(-1, 1).float())
    return np.ascontiguousarray(write_fields(kind, fields).reshape(len(rows), -1).numpy())


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


def _linears(draft: Draft) -> list[str]:
    return [n.removesuffix(".weight") for n, t in draft.weights.items() if t.ndim == 2 and "embed" not in n]


def _folder(
    draft: Draft,
    folder: Path,
    packed: Mapping[str, Tensor],
    quantization: Mapping[str, object] | None,
    dtype: torch.dtype,
) -> Path:
    """A folder of one safetensors file, then the edits that stand for faults of files."""
    folder.mkdir(parents=True)
    dense = {
        name: tensor.to(dtype).contiguous()
        for name, tensor in draft.weights.items()
        if name.removesuffix(".weight") not in draft.rounded
    }
    save_file({**dense, **packed}, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**draft.config, "dtype": str(dtype).removeprefix("torch.")}
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in draft.files.items():
        (folder / name).write_bytes(content)
    for edit in draft.after:
        edit(folder)
    return folder


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("compressed-tensors", "w4a-g32", write_compressed),
        Layout("gptq", "w4a-g32", write_gptq),
        Layout("awq", "w4a-g32", write_awq),
        Layout("gguf", "w4s-g32", write_gguf),
        Layout("dense", None, write_dense),
    )
}
"""Formats by name, healthy as they are."""


def base_scheme(layout: Layout) -> Scheme | None:
    """The scheme of a layout's healthy base."""
    return None if layout.scheme is None else Scheme.parse(layout.scheme)
