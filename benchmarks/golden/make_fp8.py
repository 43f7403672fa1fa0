"""The goldens of quant_method "fp8": quantized by transformers' own operation, loaded by it again as float32.

Run with: pip install torch==2.13.0 transformers==5.23.0 accelerate
    python -m benchmarks.golden.make_fp8 tests/formats/golden
transformers quantizes so on a GPU only, but its operation on one tensor runs anywhere; without a GPU a saved
checkpoint is dequantized when it is loaded, which gives what is expected.
"""

import argparse
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import torch
from benchmarks.golden.pico_llama import pico_llama, save_expected
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import Fp8Quantize

CASES = {
    "fp8_block": FineGrainedFP8Config(weight_block_size=(16, 16)),
    "fp8_ue8m0": FineGrainedFP8Config(weight_block_size=(16, 16), scale_fmt="ue8m0"),
}


def make(folder: Path, quantization: FineGrainedFP8Config) -> None:
    """Quantize every linear of the block, save, load."""
    shutil.rmtree(folder, ignore_errors=True)
    model = pico_llama().to(torch.bfloat16)
    model.save_pretrained(folder)
    operation = Fp8Quantize(SimpleNamespace(quantization_config=quantization))
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("_proj.weight"):
            tensors |= operation.convert({name: tensor})
        elif name != "lm_head.weight":  # tied
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    stored = quantization.to_dict() | {"modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": stored}, indent=2))
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    save_expected(folder, {n: t for n, t in loaded.items() if n.endswith("_proj.weight")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    for name, quantization in CASES.items():
        make(out / name, quantization)


if __name__ == "__main__":
    main()
