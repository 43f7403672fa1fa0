"""The llama of a few thousand weights that the goldens of several formats are made from, and their oracles.

Needs only torch and transformers, so that it runs in every upstream tool's own environment.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

EXPECTED = "expected.safetensors"


def pico_llama() -> PreTrainedModel:
    """Seeded float32 weights; down_proj's rows are 48 wide, all others 64."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=1,
        vocab_size=32,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def save_dense(folder: Path) -> None:
    pico_llama().save_pretrained(folder)


def save_expected(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """What the upstream tool itself dequantizes to, beside model.safetensors."""
    save_file(
        {name: tensor.detach().contiguous().clone() for name, tensor in weights.items()},
        folder / EXPECTED,
    )
    (folder / "generation_config.json").unlink(missing_ok=True)
