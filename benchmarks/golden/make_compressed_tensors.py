"""The compressed-tensors goldens: pico llamas compressed by the library, and what it makes of them again.

Run it in an environment of each release; it makes the cases of that release:
    pip install torch==2.13.0 transformers==5.23.0 accelerate compressed-tensors==0.17.1   (0.18.0, 0.20.0)
    python -m benchmarks.golden.make_compressed_tensors tests/formats/golden
Scales are plain min-max, computed by the library's own functions; that a tool with calibration would find
other scales changes nothing in how they are stored. 0.17 is the last release with padded words, 0.18 the
last that stores columns out of order, and 0.20 knows blocks that are cut short.
"""

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import compressed_tensors
import torch
from benchmarks.golden.pico_llama import save_expected
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from torch.nn import Linear, Module
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
BLOCK_SIZES = SIZES | {"intermediate_size": 160}  # one block of 128 and one cut short
QKV, OUT = ("re:.*[qkv]_proj$",), ("re:.*o_proj$",)
GATE_UP, DOWN = ("re:.*(gate|up)_proj$",), ("re:.*down_proj$",)
MLP = (*GATE_UP, *DOWN)

TOKEN = {"num_bits": 8, "strategy": "token", "dynamic": True}
STATIC = {"num_bits": 8, "strategy": "tensor"}
FP8, FP4 = {"num_bits": 8, "type": "float"}, {"num_bits": 4, "type": "float"}
NVFP4 = FP4 | {"strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"}
MX = {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
CHANNEL, TENSOR = {"strategy": "channel"}, {"strategy": "tensor"}
GROUP = {"strategy": "group", "group_size": 32}
ASYMMETRIC, REORDERED = {"symmetric": False}, {"actorder": "group"}


def ints(bits: int, *more: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of integer weights."""
    return {"num_bits": bits} | {key: value for part in more for key, value in part.items()}


def group(targets: tuple[str, ...], weights: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A config group."""
    return {"targets": list(targets), "weights": dict(weights)} | more


@dataclass(frozen=True)
class Case:
    """A golden: which release makes it, the model's dtype, its config groups, and what else it needs."""

    release: str
    dtype: torch.dtype
    groups: tuple[dict[str, Any], ...]
    format: str | None = None
    sizes: Mapping[str, int] = field(default_factory=lambda: SIZES)
    cache: Mapping[str, Any] | None = None


CASES = {
    "ct_int_quantized": Case(
        "0.17",
        torch.bfloat16,
        (
            group(QKV, ints(8, CHANNEL), input_activations=TOKEN),
            group(OUT, ints(8, CHANNEL, ASYMMETRIC), input_activations=STATIC, output_activations=STATIC),
            group(GATE_UP, ints(8, TENSOR, ASYMMETRIC), input_activations=STATIC | ASYMMETRIC),
            group(DOWN, ints(4, GROUP, ASYMMETRIC), input_activations=TOKEN),
        ),
        cache=STATIC,
    ),
    "ct_naive_quantized": Case(
        "0.17",
        torch.float16,
        (
            group(QKV, ints(4, GROUP, REORDERED)),
            group(OUT, ints(8, TENSOR, ASYMMETRIC)),
            group(GATE_UP, FP8 | CHANNEL),
            group(DOWN, FP8 | GROUP),
        ),
        format="naive-quantized",
    ),
    "ct_float_quantized": Case(
        "0.17",
        torch.bfloat16,
        (
            group(QKV, FP8 | TENSOR, input_activations=STATIC | FP8),
            group((*OUT, *MLP), FP8 | CHANNEL, input_activations=TOKEN | FP8),
        ),
        cache=STATIC | FP8,
    ),
    "ct_nvfp4": Case(
        "0.17",
        torch.bfloat16,
        (group(("Linear",), NVFP4, input_activations=NVFP4 | {"dynamic": "local"}),),
    ),
    "ct_mxfp4": Case("0.17", torch.bfloat16, (group(("Linear",), FP4 | MX),)),
    "ct_mxfp8": Case("0.17", torch.bfloat16, (group(("Linear",), FP8 | MX),)),
    "ct_mixed_precision": Case(
        "0.17",
        torch.bfloat16,
        (
            group(QKV, NVFP4),
            group(OUT, ints(3, GROUP, ASYMMETRIC)),
            group(GATE_UP, FP8 | CHANNEL, input_activations=TOKEN | FP8),
            group(DOWN, ints(8, CHANNEL), input_activations=TOKEN),
        ),
    ),
    "ct_pack_g_idx": Case(
        "0.17",
        torch.float16,
        (
            group((*QKV, *OUT), ints(4, GROUP, ASYMMETRIC, REORDERED)),
            group(GATE_UP, ints(3, GROUP, ASYMMETRIC, REORDERED)),
            group(DOWN, ints(8, GROUP, REORDERED)),
        ),
    ),
    "ct_pack_g_idx_dense": Case(
        "0.18",
        torch.float16,
        (
            group((*QKV, *OUT), ints(3, GROUP, ASYMMETRIC, REORDERED)),
            group(MLP, ints(6, GROUP, REORDERED)),
        ),
    ),
    "ct_pack_dense": Case(
        "0.20",
        torch.bfloat16,
        (
            group(QKV, ints(3, GROUP, ASYMMETRIC)),
            group(OUT, ints(5, CHANNEL, ASYMMETRIC)),
            group(GATE_UP, ints(6, GROUP)),
            group(DOWN, ints(7, TENSOR)),
        ),
    ),
    "ct_float_block": Case(
        "0.20",
        torch.bfloat16,
        (
            group(
                QKV + OUT + MLP,
                FP8 | {"strategy": "block", "block_structure": [128, 128]},
                input_activations=FP8 | {"strategy": "group", "group_size": 128, "dynamic": True},
            ),
        ),
        sizes=BLOCK_SIZES,
    ),
    "ct_nvfp4_recent": Case("0.20", torch.bfloat16, (group(("Linear",), NVFP4),)),
}


def pico_llama(case: Case) -> PreTrainedModel:
    """One block with seeded weights; some rows without a negative value, so that zero points differ."""
    torch.manual_seed(0)
    config = LlamaConfig(num_hidden_layers=1, vocab_size=32, tie_word_embeddings=True, **case.sizes)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Linear):
                module.weight[8:16:2] = module.weight[8:16:2].abs()
    return model.to(case.dtype).eval()


def set_qparams(module: Linear) -> None:
    """Fill in min-max scales, zero points and, if asked for, an order of columns."""
    args = module.quantization_scheme.weights
    weight = module.weight.data
    rows, columns = weight.shape
    if args.strategy == "tensor":
        parts = weight.reshape(1, -1)
    elif args.strategy == "channel":
        parts = weight.unsqueeze(1)
    elif args.strategy == "block":
        high, wide = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -columns % wide, 0, -rows % high))
        parts = padded.unflatten(0, (-1, high)).unflatten(2, (-1, wide)).transpose(1, 2).flatten(2)
    else:
        if args.actorder == "group":
            module.weight_g_idx.data = torch.randperm(columns).to(torch.int32) // args.group_size
            weight = weight[:, torch.argsort(module.weight_g_idx.data, stable=True)]
        parts = weight.unflatten(1, (-1, args.group_size))
    whole = None
    if args.strategy == "tensor_group":
        whole = generate_gparam(weight.amin(), weight.amax())
        module.weight_global_scale.data = whole.reshape(1)
    scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), args, global_scale=whole)
    module.weight_scale.data = scale.reshape(module.weight_scale.shape).to(module.weight_scale.dtype)
    if hasattr(module, "weight_zero_point"):
        module.weight_zero_point.data = zero.reshape(module.weight_scale.shape)


def set_activations(module: Module) -> None:
    """Some value for everything that only an engine needs."""
    for name, parameter in module.named_parameters(recurse=False):
        if name.endswith(("scale", "zero_point")) and not name.startswith("weight"):
            parameter.data = torch.full_like(parameter.data, 0 if name.endswith("point") else 0.02)


def make(name: str, case: Case, out: Path) -> None:
    """Quantize, save, decompress again."""
    model = pico_llama(case)
    groups = {f"group_{i}": dict(one) for i, one in enumerate(case.groups)}
    config = QuantizationConfig(config_groups=groups, ignore=["lm_head"], kv_cache_scheme=case.cache)
    apply_quantization_config(model, config)
    quantized = {}
    for module_name, module in model.named_modules():
        set_activations(module)
        if isinstance(module, Linear) and hasattr(module, "weight_scale"):
            set_qparams(module)
            quantized[module_name] = module
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format=case.format)
    compressor.compress_model(model)
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    compressor.decompress_model(model)
    save_expected(folder, {f"{name}.weight": module.weight.data for name, module in quantized.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    for name, case in CASES.items():
        if compressed_tensors.__version__.startswith(case.release):
            make(name, case, out)
            print(name)


if __name__ == "__main__":
    main()
