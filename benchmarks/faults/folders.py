"""A draft as a folder of safetensors, in each of the formats that are one."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.faults.block_weights import NF4_BLOCK, NormalFloat
from benchmarks.faults.draft import Draft
from quantriage.formats import compressed_config, compressed_tensors
from quantriage.formats.autoround import METHOD as AUTOROUND
from quantriage.formats.autoround import with_override as with_autoround_override
from quantriage.formats.awq import AwqLayout
from quantriage.formats.bitsandbytes_4bit import STATE, TABLES
from quantriage.formats.gptq import GptqLayout, with_override
from quantriage.numerics.quantized import QuantizedTensor


def write_compressed(draft: Draft, folder: Path) -> Path:
    """compressed-tensors, pack-quantized."""
    tensors: dict[str, Tensor] = {}
    for module, weight in _integers(draft).items():
        tensors |= compressed_tensors.write(module, weight)
        if module in draft.column_group:
            tensors[f"{module}.weight_g_idx"] = draft.column_group[module].to(torch.int32)
    dense = [m for m in _linears(draft) if m not in draft.rounded]
    schemes = {module: weight.scheme for module, weight in _integers(draft).items()}
    return _folder(draft, folder, tensors, compressed_config.config(schemes, dense), torch.float16)


def write_gptq(draft: Draft, folder: Path) -> Path:
    """GPTQ v1 as AutoGPTQ and GPTQModel write it."""
    scheme = next(iter(draft.schemes.values()))
    layout = GptqLayout(4, 32, False, bool(draft.column_group), 1).with_scheme(scheme)
    config: Mapping[str, object] = {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": layout.bits,
        "group_size": layout.group_size,
        "sym": layout.symmetric,
        "desc_act": layout.act_order,
    }
    tensors: dict[str, Tensor] = {}
    for module, weight in _integers(draft).items():
        own = layout
        if weight.scheme != scheme:
            own, config = layout.with_scheme(weight.scheme), with_override(config, module, weight.scheme)
        tensors |= own.write(module, weight, draft.column_group.get(module))
    return _folder(draft, folder, tensors, config, torch.float16)


def write_awq(draft: Draft, folder: Path) -> Path:
    """AWQ, GEMM layout."""
    scheme = next(iter(draft.schemes.values()))
    layout = AwqLayout(32, False).with_scheme(scheme)
    size = getattr(scheme.granularity, "size", -1)
    layout = replace(layout, group_size=size)
    config = {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": size,
        "zero_point": not scheme.grid.symmetric,
    }
    tensors: dict[str, Tensor] = {}
    for module, weight in _integers(draft).items():
        tensors |= layout.write(module, weight)
    return _folder(draft, folder, tensors, config, torch.float16)


def write_dense(draft: Draft, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Unquantized, as a conversion leaves it."""
    return _folder(draft, folder, {}, None, dtype)


def write_autoround(draft: Draft, folder: Path) -> Path:
    """AutoRound's own format over GPTQ's layout."""
    scheme = next(iter(draft.schemes.values()))
    layout = GptqLayout(4, 32, False, False, 1).with_scheme(scheme)
    config: Mapping[str, object] = {
        "quant_method": AUTOROUND,
        "packing_format": "auto_round:auto_gptq",
        "bits": layout.bits,
        "group_size": layout.group_size,
        "sym": layout.symmetric,
        "data_type": "int",
    }
    tensors: dict[str, Tensor] = {}
    for module, weight in _integers(draft).items():
        own = layout
        if weight.scheme != scheme:
            own = layout.with_scheme(weight.scheme)
            config = with_autoround_override(config, module, weight.scheme)
        tensors |= own.write(module, weight, None)
    return _folder(draft, folder, tensors, config, torch.float16)


def write_hqq(draft: Draft, folder: Path) -> Path:
    """HQQ, groups along rows, codes of the first half of the groups in the high bits."""
    tensors: dict[str, Tensor] = {}
    for module, weight in _integers(draft).items():
        width = weight.shape[1] // weight.scale.shape[1]
        codes = weight.codes.reshape(-1, width)
        high, low = codes.chunk(2)
        zero = weight.zero_point
        assert zero is not None
        parts = {
            "W_q": (high << 4) | low,
            "scale": weight.scale.reshape(-1, 1).to(torch.float16),
            "zero": zero.reshape(-1, 1).to(torch.float16),
            "nbits": torch.tensor(4, dtype=torch.int32),
            "group_size": torch.tensor(width, dtype=torch.int32),
            "axis": torch.tensor(1, dtype=torch.int32),
            "shape": torch.tensor(weight.shape, dtype=torch.int32),
            "packing": _text("4bit_u8"),
        }
        tensors |= {f"{module}.{name}": value.contiguous() for name, value in parts.items()}
    return _folder(draft, folder, tensors, {"quant_method": "hqq"}, torch.float16)


def write_nf4(draft: Draft, folder: Path) -> Path:
    """bitsandbytes NF4 without double quantization."""
    tensors: dict[str, Tensor] = {}
    for module, weight in draft.rounded.items():
        assert isinstance(weight, NormalFloat)
        state = {"quant_type": "nf4", "blocksize": NF4_BLOCK, "dtype": "float16", "shape": [*weight.shape]}
        pairs = weight.codes.reshape(-1, 2)
        name = f"{module}.weight"
        tensors |= {
            name: ((pairs[:, 0] << 4) | pairs[:, 1]).unsqueeze(1),
            f"{name}.absmax": weight.magnitudes.contiguous(),
            f"{name}.quant_map": torch.tensor(TABLES["nf4"]),
            f"{name}.{STATE}nf4": _text(json.dumps(state)),
        }
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    return _folder(draft, folder, tensors, config, torch.float16)


def _text(text: str) -> Tensor:
    return torch.tensor([*text.encode()], dtype=torch.uint8)


def _integers(draft: Draft) -> dict[str, QuantizedTensor]:
    """The rounded weights of a format that holds integer schemes alone."""
    found = {}
    for module, weight in draft.rounded.items():
        assert isinstance(weight, QuantizedTensor)
        found[module] = weight
    return found


def _linears(draft: Draft) -> list[str]:
    return [n.removesuffix(".weight") for n, t in draft.weights.items() if t.ndim == 2 and "embed" not in n]


def _folder(
    draft: Draft,
    folder: Path,
    packed: Mapping[str, Tensor],
    quantization: Mapping[str, object] | None,
    dtype: torch.dtype,
) -> Path:
    """A folder of one safetensors file, then the edits that stand for faults of files."""
    folder.mkdir(parents=True)
    dense = {
        name: tensor.to(dtype).contiguous()
        for name, tensor in draft.weights.items()
        if name.removesuffix(".weight") not in draft.rounded
    }
    save_file({**dense, **packed}, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**draft.config, "dtype": str(dtype).removeprefix("torch.")}
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in draft.files.items():
        (folder / name).write_bytes(content)
    for edit in draft.after:
        edit(folder)
    return folder
