"""A llama of a few kilobytes as a folder: dense, or with a mix of packed schemes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from quantriage.checkpoint.shard_writer import ShardWriter
from quantriage.formats import compressed_tensors
from quantriage.formats.compressed_config import config as quantization_config
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import PerTensor, Scheme

WORDS = ["the", "cat", "sat", "on", "mat", "[UNK]", "[EOS]"]


def model(dtype: torch.dtype = torch.float32, tied: bool = False) -> PreTrainedModel:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def save_dense(folder: Path, dtype: torch.dtype = torch.float32, tied: bool = False, **extra: object) -> Path:
    """A dense folder with a tokenizer."""
    model(dtype, tied).save_pretrained(folder, **extra)
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="[EOS]")
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(folder)
    return folder


def linears(of: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights of all linears of the blocks, by module name."""
    found = of.named_modules()
    return {name: m.weight.data for name, m in found if isinstance(m, torch.nn.Linear) and "layers" in name}


def round_to_nearest(weight: torch.Tensor, scheme: Scheme) -> QuantizedTensor:
    """Plain min-max rounding, enough to make a valid record."""
    rows, columns = weight.shape
    per_tensor = isinstance(scheme.granularity, PerTensor)
    groups = weight.float().reshape((1, 1, -1) if per_tensor else (rows, -1, scheme.group_width(columns)))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    top = scheme.grid.levels - 1
    if scheme.grid.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale = ((high - low) / top).to(getattr(torch, scheme.scale_dtype))
    zero = (-low / scale).round().clamp(0, top)
    if scheme.grid.symmetric:
        zero = torch.full_like(zero, scheme.grid.center)
    codes = (groups / scale.unsqueeze(-1) + zero.unsqueeze(-1)).round().clamp(0, top)
    stored = None if scheme.grid.symmetric else zero.to(torch.uint8)
    return QuantizedTensor(scheme, codes.view(rows, columns).to(torch.uint8), scale, stored)


def save_packed(
    folder: Path,
    scheme_of: Callable[[str], Scheme | None],
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
) -> Mapping[str, QuantizedTensor]:
    """Export the model with the given schemes, None for dense; the quantized weights by module."""
    source = model(dtype, tied)
    weights = linears(source)
    chosen = {name: scheme for name in weights if (scheme := scheme_of(name)) is not None}
    packed = {name: round_to_nearest(weights[name], scheme) for name, scheme in chosen.items()}
    with ShardWriter(folder) as writer:
        for name, tensor in source.state_dict().items():
            module = name.removesuffix(".weight")
            if module in packed:
                for part, value in compressed_tensors.write(module, packed[module]).items():
                    writer.add(part, value)
            elif not (tied and name == "lm_head.weight"):
                writer.add(name, tensor)
        config = source.config.to_dict() | {
            "dtype": str(dtype).removeprefix("torch."),
            "architectures": ["LlamaForCausalLM"],
            "quantization_config": quantization_config(chosen, [n for n in weights if n not in chosen], True),
        }
        writer.add_file("config.json", json.dumps(config).encode())
    return packed
