"""Rescale a Llama's weights without changing its function.

A reference that was itself dequantized from 4-bit blocks remembers their grid, and rounding to a similar
grid then looks better than it is. Multiplying one linear map's output channels by j and dividing the next
one's columns by j cancels exactly in real arithmetic, while every weight moves off its old grid. Adding
noise was rejected: it would change the function, so that published figures no longer compare.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

SPREAD = 0.35  # j = exp(uniform(-SPREAD, SPREAD))


@torch.no_grad()
def rescale_in_place(model: LlamaForCausalLM, seed: int) -> None:
    """Rescale every decoder layer: norms against linears, v against o, up against down."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        rescale_norm(layer.input_layernorm, projections, generator)
        rescale_norm(layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj), generator)
        factors = draw(attention.v_proj.out_features, generator)  # [kv_heads * head_dim]
        attention.v_proj.weight *= factors[:, None]
        # Each key-value head is read by several query heads: o_proj's columns repeat its factors.
        repeats = config.num_attention_heads // config.num_key_value_heads
        per_head = factors.view(config.num_key_value_heads, 1, -1)  # [kv_heads, 1, head_dim]
        attention.o_proj.weight /= per_head.expand(-1, repeats, -1).reshape(-1)
        factors = draw(mlp.up_proj.out_features, generator)  # [intermediate]
        mlp.up_proj.weight *= factors[:, None]
        mlp.down_proj.weight /= factors


def rescale_norm(norm: nn.Module, linears: tuple[nn.Linear, ...], generator: torch.Generator) -> None:
    """Multiply a norm's weight by random factors and divide the columns of what reads it by them."""
    weight = norm.weight
    assert isinstance(weight, Tensor)  # [hidden]
    factors = draw(weight.numel(), generator)
    weight *= factors
    for linear in linears:
        linear.weight /= factors


def draw(count: int, generator: torch.Generator) -> Tensor:
    """`count` positive factors, log-uniform around one."""
    return torch.exp(torch.empty(count).uniform_(-SPREAD, SPREAD, generator=generator))


@dataclass(frozen=True)
class LogitAgreement:
    """Largest absolute logit differences of an original and its rescaling on the same tokens."""

    function: float  # between the two in float64 arithmetic: what the rescaling itself changed
    single: float  # between the two in float32 arithmetic: that, and both models' rounding
    noise: float  # of the original alone, float32 against float64: the floor under `single`


@torch.no_grad()
def agreement(original: LlamaForCausalLM, rescaled: LlamaForCausalLM, tokens: Tensor) -> LogitAgreement:
    """Compare two float32 models on `tokens`, in both precisions  # [batch, length].

    Float32 arithmetic moves this model's logits by more than the rescaling does, so a tight check of the
    function needs float64; the stored weights stay the float32 ones.
    """
    singles = [model(tokens).logits for model in (original, rescaled)]  # each [batch, length, vocab]
    doubles = [copy.deepcopy(model).double()(tokens).logits for model in (original, rescaled)]
    return LogitAgreement(
        function=largest_difference(doubles[0], doubles[1]),
        single=largest_difference(singles[0], singles[1]),
        noise=largest_difference(singles[0].double(), doubles[0]),
    )


def largest_difference(first: Tensor, second: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape."""
    return float((first - second).abs().max())
