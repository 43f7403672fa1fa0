"""Write a folder that vLLM and transformers load, as compressed-tensors, GPTQ or AWQ, shard by shard.

Every tensor of the source is visited once in checkpoint terms: a site's weight is replaced by its packed
form, everything else is stored in the export's dtype. Peak memory is one shard. The folder appears under its
final name only when it is complete.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from quantriage.checkpoint.shard_writer import ShardWriter
from quantriage.errors import BudgetError
from quantriage.formats import compressed_config
from quantriage.formats.checkpoint import Checkpoint
from quantriage.formats.folders import FOLDERS, FolderFormat
from quantriage.formats.stored_settings import CONFIG_NAME
from quantriage.model.causal import CausalModel
from quantriage.model.site import ModelMap
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import ScaleDtype, Scheme

SHARD_BYTES = 1 << 30
_HALF_MAXIMUM = 65504.0


def scale_dtype(checkpoint: Checkpoint) -> ScaleDtype:
    """Scales are stored in the dtype the export runs in: bfloat16 if the source is, else float16."""
    return "bfloat16" if checkpoint.stored_dtype == torch.bfloat16 else "float16"


def refuse_unsupported(
    model_map: ModelMap, schemes: Mapping[str, Scheme], stored: str = compressed_config.METHOD
) -> None:
    """Raise BudgetError for the first site that the format cannot store, before any heavy work."""
    folder = FOLDERS[stored](schemes)
    for site in model_map.sites:
        if site.name in schemes:
            reason = folder.supports(schemes[site.name], site.shape, site.transposed)
            if reason is not None:
                raise BudgetError(f"{site.name} cannot be stored as {schemes[site.name]}: {reason}")


def export(
    model: CausalModel,
    model_map: ModelMap,
    schemes: Mapping[str, Scheme],
    quantized: Callable[[str], QuantizedTensor],
    directory: Path,
    replace: bool = False,
    stored: str = compressed_config.METHOD,
) -> dict[str, str]:
    """Write the checkpoint to `directory`; returns sha256 by file name.

    `quantized` gives a site's weight by name, one at a time. Sites without a scheme stay dense. stored: one
    of FOLDERS.
    """
    refuse_unsupported(model_map, schemes, stored)
    packing: FolderFormat = FOLDERS[stored](schemes)
    checkpoint = model.checkpoint
    dtype = getattr(torch, scale_dtype(checkpoint))
    weights = checkpoint.weights
    dense = [site.name for site in model_map.sites if site.name not in schemes]
    with ShardWriter(directory, SHARD_BYTES, replace=replace) as writer:
        for name in model.used_tensors():
            module = name.removesuffix(".weight")
            if module in schemes:
                for key, tensor in packing.tensors(module, quantized(module)).items():
                    writer.add(key, tensor)
            else:
                writer.add(name, _cast(name, weights.get(name), dtype))
        config = json.loads(model.checkpoint.config.to_json_string(use_diff=True))
        config["architectures"] = [model.architecture]
        config["dtype"] = str(dtype).removeprefix("torch.")
        if schemes:
            others = model.other_matrices(model_map.by_name().keys())
            config["quantization_config"] = packing.config(dense, others)
        writer.add_file(CONFIG_NAME, (json.dumps(config, indent=2) + "\n").encode())
        for name, content in checkpoint.carried_files().items():
            writer.add_file(name, content)
    return dict(writer.digests)


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """To the export's dtype; integers stay. A value that float16 cannot hold is refused by name."""
    if not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    largest = max(-float(tensor.min()), float(tensor.max())) if dtype == torch.float16 else 0.0  # no copy
    if largest > _HALF_MAXIMUM:
        raise BudgetError(
            f"{name}: holds {largest:.3g}, beyond float16's {_HALF_MAXIMUM:.0f}; "
            "convert the reference to bfloat16 first"
        )
    return tensor.to(dtype)
