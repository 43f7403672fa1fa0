"""The torchao golden: a pico llama saved by transformers, and torchao's own dequantized weights.

Run with: pip install torch==2.13.0 torchao==0.18.0 transformers==5.23.0 accelerate
    python -m benchmarks.golden.make_torchao tests/formats/golden
Every layout that torchao writes on a CPU, in bfloat16 as people publish it and in float32 for exact values.
Its packed 4-bit layouts need a GPU library.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from benchmarks.golden.pico_llama import save_dense, save_expected
from torchao.quantization import (
    Float8WeightOnlyConfig,
    FqnToConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    MappingType,
    PerAxis,
    PerGroup,
)
from transformers import AutoModelForCausalLM, TorchAoConfig

CONFIGS = {
    "self_attn.q_proj": Int8WeightOnlyConfig(version=2),
    "self_attn.k_proj": Int8DynamicActivationInt8WeightConfig(version=2),
    "self_attn.v_proj": Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=PerGroup(32), version=2
    ),
    "self_attn.o_proj": Float8WeightOnlyConfig(version=2),
    "mlp.gate_proj": IntxWeightOnlyConfig(
        weight_dtype=torch.int4, granularity=PerGroup(32), mapping_type=MappingType.ASYMMETRIC, version=2
    ),
    "mlp.up_proj": IntxWeightOnlyConfig(weight_dtype=torch.int3, granularity=PerAxis(0), version=2),
    "mlp.down_proj": Float8WeightOnlyConfig(weight_dtype=torch.float8_e5m2, version=2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    by_name = {f"model.layers.0.{name}": config for name, config in CONFIGS.items()}
    with tempfile.TemporaryDirectory() as dense:
        save_dense(Path(dense))
        for name, dtype in (("torchao_bf16", torch.bfloat16), ("torchao_fp32", torch.float32)):
            folder = out / name
            config = TorchAoConfig(FqnToConfig(by_name))
            made = AutoModelForCausalLM.from_pretrained(
                dense, dtype=dtype, quantization_config=config, device_map="cpu"
            )
            made.save_pretrained(folder)
            read = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu")
            state = read.state_dict().items()
            save_expected(folder, {n: t.dequantize() for n, t in state if hasattr(t, "qdata")})


if __name__ == "__main__":
    main()
