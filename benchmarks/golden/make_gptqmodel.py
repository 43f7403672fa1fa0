"""Make the golden files of the GPTQ and AWQ readers with GPTQModel.

    ENV/bin/python benchmarks/golden/make_gptqmodel.py tests/formats/golden

Runs in an environment with `torch==2.13.0 gptqmodel==7.7.0` and imports nothing of quantriage. Each folder
holds what GPTQModel saved and `expected.safetensors`, the weights [out, in] that its own torch kernels make
of it in float16.
"""

import argparse
import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

# its pools ask for two loaders whatever the machine has; read when the package is imported
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from pico_gptq import calibration, save_dense
from safetensors.torch import save_file

WIDTHS = {r"+:.*\.q_proj": {"bits": 2}, r"+:.*\.k_proj": {"bits": 3}, r"+:.*\.v_proj": {"bits": 8}}
DENSE_GATE = {r"-:.*\.gate_proj": {}}
CASES: dict[str, dict[str, Any]] = {
    "gptq_v1": {"sym": False, "format": "gptq", "dynamic": DENSE_GATE | WIDTHS},
    "gptq_v2_desc_act": {"sym": False, "format": "gptq_v2", "desc_act": True, "dynamic": WIDTHS},
    "gptq_v1_channel": {"sym": True, "format": "gptq", "group_size": -1, "act_group_aware": False},
    "awq_gemm": {"method": "awq", "format": "gemm", "sym": False},
}
KEPT = ("config.json", "model.safetensors")
CHECKED = {
    "awq_gemm": ("k_proj", "up_proj", "down_proj")
}  # of the wider model not all, to keep the file small


def quantize(dense: Path, folder: Path, **options: Any) -> None:
    settings = {"bits": 4, "group_size": 16, "desc_act": False} | options
    config = QuantizeConfig(**settings, device="cpu", offload_to_disk=False)
    model = GPTQModel.load(str(dense), config, dtype=torch.float16)
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in calibration()]
    model.quantize(rows, batch_size=1)
    model.save(str(folder))


def own_weights(folder: Path, backend: BACKEND) -> dict[str, torch.Tensor]:
    """What GPTQModel's torch kernels multiply with, float16 [out, in] by module."""
    loaded = GPTQModel.load(str(folder), device="cpu", backend=backend, dtype=torch.float16)
    found = {}
    for name, module in loaded.model.named_modules():
        if hasattr(module, "dequantize_weight"):
            found[name] = module.dequantize_weight().T
        elif hasattr(module, "_dequantize_weight_for_inference"):
            anywhere = torch.empty(0, dtype=torch.float16)
            weight = module._dequantize_weight_for_inference(anywhere, dtype=torch.float16)
            found[name] = weight.T
    assert found
    return {name: weight.to(torch.float16).contiguous() for name, weight in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=CASES)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    for name in [arguments.only] if arguments.only else CASES:
        options = CASES[name]
        # inside, since GPTQModel leaves a folder of logs where it runs
        with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
            dense, quantized = Path(temporary) / "dense", Path(temporary) / "quantized"
            awq = options.get("method") == "awq"
            save_dense(dense, wide=awq)
            quantize(dense, quantized, **options)
            expected = own_weights(quantized, BACKEND.TORCH_AWQ if awq else BACKEND.TORCH)
            target = out / name
            target.mkdir(parents=True, exist_ok=True)
            for file in KEPT:
                shutil.copyfile(quantized / file, target / file)
            checked = CHECKED.get(name, ("proj",))
            few = {module: weight for module, weight in expected.items() if module.endswith(checked)}
            save_file(few, target / "expected.safetensors")
        config = json.loads((target / "config.json").read_text())["quantization_config"]
        print(name, config["meta"]["quantizer"], sorted(expected))


if __name__ == "__main__":
    main()
