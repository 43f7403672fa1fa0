"""Real transformers models of a few thousand weights, as folders and whole in memory as the oracle.

The architectures are chosen for how they differ: biases on q, k and v (qwen2), norms inside attention
(qwen3), blocks with different masks and rotary tables (gemma3), transposed fused matrices (gpt2), fused
experts (mixtral), and expert blocks mixed with a dense one (qwen3_moe).
"""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from quantriage.data.token_set import TokenSet
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.model.causal import CausalModel
from quantriage.model.discover import discover
from quantriage.model.site import ModelMap
from quantriage.stream.compute import exact
from quantriage.stream.fisher_probe import random_signs
from quantriage.stream.states import StateStore
from quantriage.stream.stream import Stream, StreamSettings

VOCABULARY = 100
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,  # large enough that one weight changes the output measurably
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
_MIXED_ATTENTION = ["sliding_attention", "full_attention", "sliding_attention"]
_GPT2 = {
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
}
_EXPERTS = {"num_experts": 8, "moe_intermediate_size": 16, "num_experts_per_tok": 2, "mlp_only_layers": [0]}

CONFIGS: dict[str, Callable[..., PretrainedConfig]] = {
    "llama": lambda **more: LlamaConfig(**_SIZES | more),
    "qwen2": lambda **more: Qwen2Config(**_SIZES | more),
    "qwen3": lambda **more: Qwen3Config(**_SIZES | {"head_dim": 8} | more),
    "gemma3_text": lambda **more: Gemma3TextConfig(
        **_SIZES | {"head_dim": 8, "sliding_window": 4, "layer_types": _MIXED_ATTENTION} | more
    ),
    "gpt2": lambda **more: GPT2Config(**_GPT2 | more),
    "mixtral": lambda **more: MixtralConfig(**_SIZES | {"num_local_experts": 4} | more),
    "qwen3_moe": lambda **more: Qwen3MoeConfig(**_SIZES | {"head_dim": 8} | _EXPERTS | more),
}


@dataclass(frozen=True)
class Saved:
    """A model as a folder, and whole in memory, float32."""

    name: str
    folder: Path
    whole: PreTrainedModel

    def open(self) -> tuple[CausalModel, ModelMap]:
        """The folder opened for streaming."""
        model = CausalModel(open_checkpoint(self.folder))
        return model, discover(model)

    def tensors(self) -> dict[str, Tensor]:
        """The checkpoint's tensors, read by the safetensors package."""
        return load_file(self.folder / "model.safetensors")

    def edit(self, change: Callable[[dict[str, Tensor]], object]) -> None:
        """Write the checkpoint again with changed tensors."""
        tensors = self.tensors()
        change(tensors)
        save_file(tensors, self.folder / "model.safetensors", metadata={"format": "pt"})


def save(name: str, folder: Path, **changes: Any) -> Saved:
    """Build the architecture `name` with seeded weights, norms and biases random too, and save it."""
    torch.manual_seed(0)
    whole = AutoModelForCausalLM.from_config(CONFIGS[name](**changes)).eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    whole.save_pretrained(folder)
    return Saved(name, folder, whole)


def some_tokens(sequences: int = 6, length: int = 16) -> TokenSet:
    """Seeded random tokens."""
    generator = torch.Generator().manual_seed(7)
    return TokenSet.of(torch.randint(0, VOCABULARY, (sequences, length), generator=generator), "random")


def stream_of(
    model: CausalModel, model_map: ModelMap, tokens: TokenSet, spill: Path, state_bytes: int = 1 << 30
) -> Stream:
    """In float32, two sequences a batch, ten rows of logits at once."""
    settings = StreamSettings(batch=2, head_logits=10 * VOCABULARY)
    return Stream(model, model_map.sites, tokens, exact(), StateStore(spill, state_bytes), settings)


def probes(whole: PreTrainedModel, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Gradients [n, vocabulary] at the logits that `stream_of` draws, row by row."""
    drawn = []
    with torch.no_grad():
        for batch in whole(tokens).logits.split(2):
            for rows in torch.softmax(batch.reshape(-1, VOCABULARY), dim=-1).split(10):
                signs = random_signs(*rows.shape, generator)
                drawn.append(signs * rows.sqrt() - rows * (signs * rows.sqrt()).sum(-1, keepdim=True))
    return torch.cat(drawn)


@dataclass
class Seen:
    """Input [sequences, length, in] and gradient of the loss at the output [sequences, length, out]."""

    inputs: Tensor
    gradients: Tensor


def whole_model_gradients(
    whole: PreTrainedModel, modules: Iterable[str], tokens: Tensor, at_logits: Tensor
) -> dict[str, Seen]:
    """By module: what it reads, and autograd's gradient for gradients [n, vocabulary] at the logits."""
    found: dict[str, Seen] = {}
    with _recording(whole, modules) as calls, torch.enable_grad():
        embedded = whole.get_input_embeddings()(tokens).detach().requires_grad_(True)
        logits = whole(inputs_embeds=embedded).logits
        outputs = [output for _, output in calls.values()]
        gradients = torch.autograd.grad(logits, outputs, at_logits.view_as(logits))
    for (name, (inputs, _)), gradient in zip(calls.items(), gradients, strict=True):
        found[name] = Seen(inputs.detach(), gradient)
    return found


@contextmanager
def _recording(whole: PreTrainedModel, modules: Iterable[str]):  # type: ignore[no-untyped-def]
    calls: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        return lambda _, inputs, output: calls.__setitem__(name, (inputs[0], output))

    hooks = [whole.get_submodule(name).register_forward_hook(keep(name)) for name in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
