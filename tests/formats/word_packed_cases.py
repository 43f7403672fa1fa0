"""What the tests of GPTQ, AWQ and AutoRound share: goldens, random weights, and a file with one module."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantriage.checkpoint.safetensors_source import open_safetensors
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.formats.packed_modules import PackedModules
from quantriage.formats.readers import READERS
from quantriage.formats.word_packed import WordPackedWeight
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme

GOLDEN = Path(__file__).parent / "golden"


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def check_golden(name: str) -> dict[str, Tensor]:
    """Every expected weight read as upstream's kernels have it; returns the zero points by module.

    Upstream multiplies in float16, we in float32: the difference is half a unit in the last place of float16,
    and rounding ours once to float16 leaves none.
    """
    weights = open_checkpoint(GOLDEN / name).weights
    expected = load_file(GOLDEN / name / "expected.safetensors")
    zeros = {}
    for module, theirs in expected.items():
        ours = weights.get(f"{module}.weight")
        assert ours.dtype == torch.float32
        assert weights.shape(f"{module}.weight") == theirs.shape
        assert torch.equal(ours.to(torch.float16), theirs), module
        stored = weights.stored(module)
        assert stored is not None
        assert stored.codes is not None
        assert stored.scale is not None
        assert stored.zero_point is not None
        group = stored.column_group
        if group is None:
            group = torch.arange(stored.shape[1]) * stored.scale.shape[1] // stored.shape[1]
        by_record = (stored.codes.float() - stored.zero_point.float()[:, group]) * stored.scale[:, group]
        assert torch.equal(by_record, ours)
        zeros[module] = stored.zero_point
    return zeros


def packed_weights(name: str) -> dict[str, WordPackedWeight]:
    """The packed modules of a golden."""
    weights = open_checkpoint(GOLDEN / name).weights
    assert isinstance(weights, PackedModules)
    return {
        full.removesuffix(".weight"): weight
        for full, weight in weights.packed.items()
        if isinstance(weight, WordPackedWeight)
    }


def check_written_again(name: str) -> None:
    """Reading a golden's modules and writing them gives upstream's own bytes."""
    for module, weight in packed_weights(name).items():
        stored = weight.stored()
        assert stored.codes is not None
        assert stored.scale is not None
        assert stored.zero_point is not None
        found = weight.tensors()
        scheme = stored.scheme or Scheme.parse(f"w{stored.levels.bit_length() - 1}a-g16")
        scale = stored.scale.to(getattr(torch, stored.scale_dtype))
        quantized = QuantizedTensor(scheme, stored.codes, scale, stored.zero_point)
        written = weight.layout.write(module, quantized, stored.column_group)
        assert stored.nbytes == sum(tensor.nbytes for tensor in found.values())
        for part, tensor in found.items():
            assert written[part].dtype == tensor.dtype, part
            assert written[part].is_contiguous(), part
            assert torch.equal(written[part], tensor), part


def random_weight(scheme: Scheme, shape: tuple[int, int], groups: int | None = None) -> QuantizedTensor:
    """All codes and zero points, scales of the scheme's dtype."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{scheme}{shape}".encode()))
    rows, columns = shape
    groups = groups or columns // scheme.group_width(columns)
    codes = torch.randint(0, scheme.grid.levels, shape, generator=generator, dtype=torch.uint8)
    scale = torch.rand(rows, groups, generator=generator) + 0.01
    zero = torch.randint(0, scheme.grid.levels, (rows, groups), generator=generator, dtype=torch.uint8)
    dtype = getattr(torch, scheme.scale_dtype)
    return QuantizedTensor(scheme, codes, scale.to(dtype), None if scheme.grid.symmetric else zero)


def opened(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> PackedModules:
    """A file with these tensors under this quantization_config."""
    save_file(dict(tensors), folder / "model.safetensors")
    weights = READERS[str(config["quant_method"])](open_safetensors(folder), config, "config")
    assert isinstance(weights, PackedModules)
    return weights
