"""How many bytes a model takes in a format, and its key-value cache at a context, from its config alone.

transformers builds the model on the meta device, which costs no memory and knows every architecture; sizes
are then sums over true shapes, scales counted. Rejected: parameters times bits, which is off by the
embedding and the scales, a third of a small model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from quantriage.errors import ArchitectureError, BudgetError
from quantriage.formats.gguf_encode import bits_per_weight
from quantriage.numerics.schemes import Scheme
from quantriage.plan.advice_rules import WeightRule

_HALF = 2  # bytes of a weight that stays unquantized, and of a cached number


@dataclass(frozen=True)
class Matrix:
    """A quantizable weight: `count` matrices of [out, in]."""

    name: str
    shape: tuple[int, int]
    count: int = 1

    @property
    def weights(self) -> int:
        """Numbers in it."""
        return self.count * self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class ModelShape:
    """What sizes depend on. embedding, head: weights; head is 0 where it is tied. small: norms, biases."""

    matrices: tuple[Matrix, ...]
    embedding: tuple[int, int]
    head: tuple[int, int] | None
    small: int

    @property
    def weights(self) -> int:
        """All parameters."""
        head = prod(self.head) if self.head else 0
        return sum(m.weights for m in self.matrices) + prod(self.embedding) + head + self.small


@dataclass(frozen=True)
class Size:
    """Bytes of the weights, and stored bits per weight over the quantized matrices."""

    nbytes: int
    bits: float


def model_shape(config: PretrainedConfig) -> ModelShape:
    """Shapes of the model that the config describes. Raises ArchitectureError if transformers knows none."""
    maker: Any = AutoModelForCausalLM  # which leaves its functions unannotated
    try:
        with torch.device("meta"):
            model: Any = maker.from_config(config)
    except (ValueError, KeyError, TypeError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise ArchitectureError(f"transformers cannot build this model from its config ({error})") from error
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        raise ArchitectureError(
            "the model has no embedding or no output head; expected a causal language model"
        )
    turned = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    outer = {id(embedding.weight), id(head.weight)}
    matrices, small = [], 0
    for name, value in model.named_parameters():
        if id(value) in outer:
            continue
        if value.ndim < 2:
            small += value.numel()
            continue
        rows, columns = value.shape[-2:]
        shape = (columns, rows) if name in turned else (rows, columns)
        matrices.append(Matrix(name, shape, value.numel() // (rows * columns)))
    tied = head.weight is embedding.weight or bool(getattr(config, "tie_word_embeddings", False))
    return ModelShape(
        tuple(matrices),
        (int(embedding.weight.shape[0]), int(embedding.weight.shape[1])),
        None if tied else (int(head.weight.shape[0]), int(head.weight.shape[1])),
        small,
    )


def weight_size(shape: ModelShape, rule: WeightRule, fallback: Mapping[str, str]) -> Size:
    """Bytes under a rule. Raises BudgetError, naming the matrix, where a group does not divide it."""
    body = sum(m.count * _matrix_bits(m, rule, fallback) for m in shape.matrices) / 8
    if rule.type is None:
        outer = _HALF * (prod(shape.embedding) + (prod(shape.head) if shape.head else 0))
        small = _HALF * shape.small
    else:  # llama.cpp: a tied embedding is stored once, in the head's type; small tensors in float32
        first = rule.embedding if shape.head else rule.head
        outer = _typed_bits(shape.embedding, first, fallback) // 8
        outer += _typed_bits(shape.head, rule.head, fallback) // 8 if shape.head else 0
        small = 4 * shape.small
    total = sum(m.weights for m in shape.matrices)
    return Size(int(body + outer + small), 8 * body / total)


def dense_size(shape: ModelShape) -> int:
    """Bytes in 16 bits."""
    return _HALF * shape.weights


def cache_bytes(config: PretrainedConfig, context: int, sequences: int = 1) -> int:
    """Bytes of keys and values in 16 bits for `sequences` of `context` tokens.

    Layers with a sliding window keep no more than it; latent attention (MLA) keeps one compressed vector
    and one rotary key; layers without attention keep none that grows.
    """
    heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    shared = int(getattr(config, "num_key_value_heads", None) or heads)
    latent = getattr(config, "kv_lora_rank", None)
    per_token = 2 * shared * width
    if latent:
        per_token = int(latent) + int(getattr(config, "qk_rope_head_dim", 0) or 0)
    return _HALF * per_token * sequences * sum(_kept(kind, config, context) for kind in _layers(config))


def _layers(config: PretrainedConfig) -> Sequence[str]:
    kinds = getattr(config, "layer_types", None)
    return list(kinds) if kinds else ["full_attention"] * int(config.num_hidden_layers)


def _kept(kind: str, config: PretrainedConfig, context: int) -> int:
    """Tokens that a layer of this kind remembers."""
    if "attention" not in kind or kind.startswith("linear"):
        return 0
    window = getattr(config, "sliding_window", None)
    return min(context, int(window)) if "sliding" in kind and window else context


def _matrix_bits(matrix: Matrix, rule: WeightRule, fallback: Mapping[str, str]) -> int:
    if rule.type is not None:
        return _typed_bits(matrix.shape, rule.type, fallback)
    if rule.bits is not None:
        return int(rule.bits * matrix.shape[0] * matrix.shape[1])
    assert rule.scheme is not None
    try:
        return Scheme.parse(rule.scheme).stored_bits(matrix.shape)
    except BudgetError as error:
        raise BudgetError(f"{matrix.name}: {error}") from error


def _typed_bits(shape: tuple[int, int], kind: str, fallback: Mapping[str, str]) -> int:
    """Bits of [rows, columns] in a GGUF type, in the one that replaces it where blocks do not divide rows."""
    used = fallback[kind] if shape[1] % 256 and kind in fallback else kind
    if shape[1] % 32 and used not in ("F16", "F32"):
        used = "F16"
    return int(shape[0] * shape[1] * bits_per_weight(used))
