"""Make the golden files of the AutoRound reader with AutoRound.

    ENV/bin/python benchmarks/golden/make_autoround.py tests/formats/golden

Runs in an environment with `torch==2.13.0 auto-round==0.16.1` and imports nothing of quantriage. Each folder
holds what AutoRound saved and `expected.safetensors`, the weights [out, in] that its own code makes of it in
float16: a layer that is given the identity as input adds only zeros to its weight.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from auto_round import AutoRound
from auto_round.export.export_to_awq.utils import dequantize_gemm
from pico_gptq import calibration, save_dense
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoRoundConfig, AutoTokenizer

WIDTHS = {
    "model.layers.0.self_attn.q_proj": {"bits": 2},
    "model.layers.0.self_attn.k_proj": {"bits": 3},
    "model.layers.0.self_attn.v_proj": {"bits": 8, "group_size": 32},
    "model.layers.0.mlp.gate_proj": {"bits": 16},
}
CASES: dict[str, dict[str, Any]] = {
    "autoround_gptq": {"format": "auto_round:auto_gptq", "sym": True, "layer_config": WIDTHS},
    "autoround_gptqmodel": {"format": "auto_round:gptqmodel", "sym": False, "layer_config": WIDTHS},
    "autoround_awq": {"format": "auto_round:auto_awq", "sym": False},
}
KEPT = ("config.json", "model.safetensors")
CHECKED = {"autoround_awq": ("k_proj", "up_proj", "down_proj")}


def quantize(dense: Path, folder: Path, format: str, **options: Any) -> Path:
    """Quantize; returns the folder that AutoRound chose within `folder`."""
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float16)
    tokenizer = AutoTokenizer.from_pretrained(dense)
    autoround = AutoRound(
        model,
        tokenizer,
        bits=4,
        group_size=16,
        iters=2,
        nsamples=16,
        seqlen=32,
        batch_size=4,
        dataset=[{"input_ids": row} for row in calibration()],
        device_map="cpu",
        **options,
    )
    _, saved = autoround.quantize_and_save(str(folder), format=format)
    return Path(saved[0] if isinstance(saved, (list, tuple)) else saved)


def loaded_weights(folder: Path) -> dict[str, torch.Tensor]:
    """What AutoRound's torch kernels multiply with, float16 [out, in] by module."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float16, quantization_config=AutoRoundConfig(backend="torch")
    )
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "qweight"):
            with torch.no_grad():
                found[name] = module(torch.eye(module.infeatures, dtype=torch.float16)).T
    return found


def awq_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The same for its AWQ layout, which it loads on a CPU only through packages that are not needed here."""
    tensors = load_file(folder / "model.safetensors")
    modules = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    found = {}
    for name in modules:
        parts = [tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales")]
        found[name] = dequantize_gemm(*parts, bits=4, group_size=16).T
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=CASES)
    arguments = parser.parse_args()
    for name in [arguments.only] if arguments.only else CASES:
        awq = name == "autoround_awq"
        with tempfile.TemporaryDirectory() as temporary:
            dense = Path(temporary) / "dense"
            save_dense(dense, wide=awq)
            quantized = quantize(dense, Path(temporary) / "quantized", **CASES[name])
            expected = awq_weights(quantized) if awq else loaded_weights(quantized)
            assert expected
            target = arguments.out / name
            target.mkdir(parents=True, exist_ok=True)
            for file in KEPT:
                shutil.copyfile(quantized / file, target / file)
            checked = CHECKED.get(name, ("proj",))
            few = {
                module: weight.contiguous() for module, weight in expected.items() if module.endswith(checked)
            }
            save_file(few, target / "expected.safetensors")
        print(name, sorted(few))


if __name__ == "__main__":
    main()
