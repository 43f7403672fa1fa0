"""Settings of a model as GGUF keys, and back where transformers leaves them out.

transformers' reader takes no rotary scaling, no width of a head and no biases from the keys of these
architectures; a model with any of them would be read as another one, in silence. llama.cpp keeps Llama 3's
scaling as a tensor of divisors of the frequencies, which is what transformers calls longrope with factors
that do not depend on the length.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, RopeScalingType
from gguf.gguf_writer import GGUFWriter
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from quantriage.checkpoint.gguf_file import GGUFSource
from quantriage.errors import CheckpointError

# by transformers' model_type: those whose tensors and settings a GGUF file can hold one to one
ARCHITECTURES: dict[str, MODEL_ARCH] = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
}
FREQUENCIES = "rope_freqs.weight"
_SCALED = ("llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe")
_HEAD_WIDTH = ("qwen2", "qwen3")
_MOST_FREQUENCIES = 1 << 16
_YARN_KEYS = {"rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings"}


def architecture_of(config: PretrainedConfig, where: str) -> MODEL_ARCH:
    """llama.cpp's architecture. Raises CheckpointError for others and for settings that GGUF cannot say."""
    kind = str(config.model_type)
    if kind not in ARCHITECTURES:
        raise CheckpointError(
            f"{where}: a GGUF file is written from folders of {', '.join(ARCHITECTURES)}, this is {kind!r}; "
            "convert it with llama.cpp's convert_hf_to_gguf.py --outtype bf16, and use that file as the "
            "reference"
        )
    if config.hidden_act != "silu":
        raise CheckpointError(f"{where}: hidden_act is {config.hidden_act!r}; llama.cpp knows silu here")
    window = getattr(config, "sliding_window", None)
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layers != {"full_attention"} or (kind == "mistral" and window is not None):
        raise CheckpointError(
            f"{where}: attends within a window of {window} tokens, which llama.cpp does not for {kind}; "
            "beyond it the two would differ. Set it to null in config.json if longer text does not matter"
        )
    return ARCHITECTURES[kind]


def write_settings(writer: GGUFWriter, config: PretrainedConfig, where: str) -> Tensor | None:
    """Add the keys that say the model's shape; returns the rotary divisors, float32 [head / 2], if any.

    Raises CheckpointError for a count that is none and for rotary scaling that llama.cpp does not have.
    """
    heads = _count(config, "num_attention_heads", where)
    width = getattr(config, "head_dim", None) or _count(config, "hidden_size", where) // heads
    writer.add_block_count(_count(config, "num_hidden_layers", where))
    writer.add_context_length(_count(config, "max_position_embeddings", where))
    writer.add_embedding_length(_count(config, "hidden_size", where))
    writer.add_feed_forward_length(_count(config, "intermediate_size", where))
    writer.add_head_count(heads)
    writer.add_head_count_kv(_count(config, "num_key_value_heads", where))
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    writer.add_vocab_size(_count(config, "vocab_size", where))
    writer.add_rope_dimension_count(width)
    rope: Mapping[str, Any] = config.rope_parameters or {}
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    return _write_scaling(writer, config, rope, where)


def _write_scaling(
    writer: GGUFWriter, config: PretrainedConfig, rope: Mapping[str, Any], where: str
) -> Tensor | None:
    """Keys of rotary scaling, or the divisors of Llama 3's."""
    kind = rope.get("rope_type", "default")
    partial = rope.get("partial_rotary_factor")
    if partial not in (None, 1, 1.0):
        raise CheckpointError(f"{where}: turns {partial} of each head only, which is not written as GGUF yet")
    if kind == "llama3":
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        places = torch.arange(0, 2 * len(scaled), 2, dtype=torch.float32) / (2 * len(scaled))
        divisors: Tensor = 1.0 / rope["rope_theta"] ** places / scaled
        return divisors
    if kind == "yarn" and rope.keys() <= _YARN_KEYS:
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
    elif kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind != "default":
        more = ", ".join(sorted(rope.keys() - _YARN_KEYS))
        raise CheckpointError(
            f"{where}: rotary scaling {kind!r}{f' with {more}' if more else ''} is not written as GGUF; "
            "default, linear, llama3 and plain yarn are. Convert with llama.cpp's convert_hf_to_gguf.py if "
            "it knows it"
        )
    return None


def settings_left_out(source: GGUFSource, architecture: str) -> dict[str, object]:
    """Config settings that the file has and transformers does not take from it.

    Raises CheckpointError for rotary divisors that are none.
    """
    found: dict[str, object] = {}
    scalars, names = source.scalars, source.tensors.keys()
    if architecture in _HEAD_WIDTH and f"{architecture}.attention.key_length" in scalars:
        found["head_dim"] = scalars[f"{architecture}.attention.key_length"]
    if architecture == MODEL_ARCH_NAMES[MODEL_ARCH.LLAMA]:
        biases = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_gate.bias"}
        found |= {setting: True for setting, name in biases.items() if name in names}
    if architecture in _SCALED:
        scaling = _divided(source, architecture) if FREQUENCIES in names else _scaled(scalars, architecture)
        if scaling:
            found["rope_scaling"] = scaling
    return found


def _scaled(scalars: Mapping[str, Any], architecture: str) -> dict[str, object]:
    """Linear or yarn scaling out of the keys, empty if there is none."""
    key = f"{architecture}.rope.scaling"
    kind, factor = scalars.get(f"{key}.type"), scalars.get(f"{key}.factor")
    if kind not in ("linear", "yarn") or not isinstance(factor, int | float) or not factor > 0:
        return {}
    found: dict[str, object] = {"rope_type": kind, "factor": float(factor)}
    original, own = scalars.get(f"{key}.original_context_length"), scalars.get(f"{key}.attn_factor")
    if kind == "yarn" and type(original) is int:
        found["original_max_position_embeddings"] = original
    if kind == "yarn" and isinstance(own, int | float) and own != 1:
        found["attention_factor"] = own * (1 + 0.1 * math.log(factor))
    return found


def _divided(source: GGUFSource, architecture: str) -> dict[str, object]:
    """The scaling that divides each frequency by the file's number for it."""
    shape, width = source.meta(FREQUENCIES).shape, _head_width(source.scalars, architecture)
    if len(shape) != 1 or 2 * shape[0] != width or shape[0] > _MOST_FREQUENCIES:
        raise CheckpointError(
            f"{source.path}: {FREQUENCIES!r} has shape {shape}, expected one number for each two of "
            f"the {width} that a head turns"
        )
    divisors = source.get(FREQUENCIES).to(torch.float32)
    if not bool((divisors.isfinite() & (divisors > 0)).all()):
        raise CheckpointError(f"{source.path}: {FREQUENCIES!r} has values that are no divisors")
    found: dict[str, object] = {"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0}
    found["short_factor"] = found["long_factor"] = [float(value) for value in divisors]
    return found


def _head_width(scalars: Mapping[str, Any], architecture: str) -> int | None:
    """How many numbers of a head are turned, as llama.cpp finds it; None if the file does not say."""
    for name in ("rope.dimension_count", "attention.key_length"):
        if type(width := scalars.get(f"{architecture}.{name}")) is int:
            return width
    whole = scalars.get(f"{architecture}.embedding_length")
    heads = scalars.get(f"{architecture}.attention.head_count")
    return whole // heads if type(whole) is int and type(heads) is int and heads > 0 else None


def _count(config: PretrainedConfig, name: str, where: str) -> int:
    value = getattr(config, name, None)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise CheckpointError(f"{where}: {name} is {value!r}; expected a positive number")
    return value
