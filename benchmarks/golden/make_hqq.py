"""The HQQ goldens: a pico llama saved by transformers, and HQQ's own dequantized weights.

Run with: pip install torch==2.13.0 hqq==0.2.8.post1 transformers==4.57.6 accelerate
    python -m benchmarks.golden.make_hqq tests/formats/golden
transformers 5 still knows the option but no longer quantizes with it, so 4.57 is the writer. One model holds
every width and both axes; transformers always has it computed in float32. HQQ's own wrapper computes in
float16, the usual form: 4 bits by 64; it writes the same tensors, but no quantization into the config.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from benchmarks.golden.pico_llama import pico_llama, save_dense, save_expected
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from hqq.models.hf.base import AutoHQQHFModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, HqqConfig, PreTrainedModel

MIXED = {
    "self_attn.q_proj": {"nbits": 8, "group_size": 64, "axis": 1},
    "self_attn.k_proj": {"nbits": 3, "group_size": 32, "axis": 1},
    "self_attn.v_proj": {"nbits": 2, "group_size": 16, "axis": 0},
    "self_attn.o_proj": {"nbits": 1, "group_size": 32, "axis": 1},
    "mlp.gate_proj": {"nbits": 4, "group_size": 64, "axis": 0},
    "mlp.up_proj": {"nbits": 3, "group_size": 64, "axis": 0},
    "mlp.down_proj": {"nbits": 4, "group_size": 64, "axis": 1, "view_as_float": True},  # groups straddle rows
}


def dequantized(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """By weight name: what HQQ makes of its codes."""
    layers = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, HQQLinear)}
    return {name: layer.dequantize() for name, layer in layers.items()}


def save_mixed(folder: Path) -> None:
    """By transformers, read back by transformers."""
    with tempfile.TemporaryDirectory() as dense:
        save_dense(Path(dense))
        config = HqqConfig(dynamic_config=MIXED)
        made = AutoModelForCausalLM.from_pretrained(
            dense, dtype=torch.float32, quantization_config=config, device_map="cpu"
        )
    made.save_pretrained(folder)
    read = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu")
    save_expected(folder, dequantized(read))


def save_half(folder: Path) -> None:
    """By HQQ itself, with the config that transformers writes."""
    model = pico_llama().half()
    weights = BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
    AutoHQQHFModel.quantize_model(model, weights, compute_dtype=torch.float16, device="cpu")
    model.config.quantization_config = HqqConfig(nbits=4, group_size=64).to_dict()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")
    stored = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    save_expected(folder, dequantized(model))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    save_mixed(out / "hqq_mixed")
    save_half(out / "hqq_half")


if __name__ == "__main__":
    main()
