"""Checkpoints that upstream tools wrote, what those tools read from them, and damaged copies of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, ones

from quantriage.formats.checkpoint import open_checkpoint
from quantriage.formats.weight_source import WeightSource

GOLDEN = Path(__file__).parent / "golden"
PICO_LLAMA = {
    "model.embed_tokens.weight",
    "model.norm.weight",
    *(f"model.layers.0.{name}_layernorm.weight" for name in ("input", "post_attention")),
    *(f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
}

Tensors = dict[str, Tensor]
Metadata = dict[str, str]


def read(folder: Path) -> WeightSource:
    return open_checkpoint(folder).weights


def tensors_of(name: str) -> Tensors:
    """What the upstream tool stored."""
    return load_file(GOLDEN / name / "model.safetensors")


def expected(name: str) -> Tensors:
    """What the upstream tool dequantizes to, in the dtype that it does so."""
    return load_file(GOLDEN / name / "expected.safetensors")


def damaged(name: str, folder: Path, change: Callable[[Tensors, Metadata], object]) -> Path:
    """A copy of a golden whose tensors and header texts `change` has edited."""
    with safe_open(GOLDEN / name / "model.safetensors", "pt") as file:
        metadata = dict(file.metadata() or {})
    tensors = tensors_of(name)
    change(tensors, metadata)
    shutil.copy(GOLDEN / name / "config.json", folder)
    save_file(tensors, folder / "model.safetensors", metadata=metadata)
    return folder


def small(method: str, folder: Path, tensors: Tensors, metadata: Metadata | None = None) -> WeightSource:
    """A folder that holds only `tensors`, quantized by `method`."""
    config = {"model_type": "llama", "quantization_config": {"quant_method": method}}
    (folder / "config.json").write_text(json.dumps(config))
    dense = {"norm.weight": ones(8)}  # every model has a tensor of floats
    save_file(tensors | dense, folder / "model.safetensors", metadata=metadata)
    return read(folder)


def stored_bytes(tensors: Tensors, module: str) -> int:
    """Bytes of everything stored for a module."""
    return sum(t.numel() * t.itemsize for name, t in tensors.items() if name.startswith(f"{module}."))
