"""What a folder says of its own quantization: in config.json, in a file beside it, or by its tensors alone.

Tools wrote `quantize_config.json` (AutoGPTQ) or `quant_config.json` (AutoAWQ) long before transformers had a
place for it, without a quant_method, and HQQ's own `save_to_safetensors` writes none at all: each module
carries its settings. Such folders are read by what their tensors are; packed tensors that nothing explains
are refused, for a reader of dense weights would leave them out and run a model with random layers.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from quantriage.checkpoint.strict_json import read_object
from quantriage.errors import CheckpointError
from quantriage.formats.awq import METHOD as AWQ
from quantriage.formats.gptq import METHOD as GPTQ
from quantriage.formats.hqq import METHOD as HQQ

CONFIG_NAME = "config.json"
KEY = "quantization_config"
OLDER_CONFIGS = {"quantize_config.json": GPTQ, "quant_config.json": AWQ}
"""Files of tools that write no quantization_config, and whose they are unless they say so themselves."""
_WORDS = "qweight"  # the packed codes of GPTQ, AWQ and AutoRound
_OF_HQQ = ("W_q", "nbits")
_PACKED = (_WORDS, "W_q", "weight_packed", "absmax", "SCB")
"""Last parts of names that no dense checkpoint has."""


@dataclass(frozen=True)
class StoredSettings:
    """The quantization config with a quant_method, and the file that says so (config.json if none does)."""

    settings: dict[str, object]
    path: Path


def stored_settings(folder: Path, names: Collection[str]) -> StoredSettings | None:
    """The settings of the folder whose tensors are `names`; None if it is dense.

    Raises CheckpointError for packed tensors without settings, or settings that are no object.
    """
    config = folder / CONFIG_NAME
    stored = read_object(config).get(KEY)
    if stored is not None:
        if not isinstance(stored, dict):
            raise CheckpointError(f"{config}: {KEY} is {type(stored).__name__}, expected an object")
        return StoredSettings(stored, config)
    packed = next((name for name in names if _last(name) in _PACKED), None)
    if packed is None:
        return None
    if _last(packed) == _WORDS:
        for file, method in OLDER_CONFIGS.items():
            if (folder / file).is_file():
                return StoredSettings({"quant_method": method} | read_object(folder / file), folder / file)
    module = packed.rpartition(".")[0]
    if all(f"{module}.{part}" in names for part in _OF_HQQ):
        return StoredSettings({"quant_method": HQQ}, config)
    raise CheckpointError(
        f"{config}: no {KEY}, yet {packed!r} holds packed codes; add the settings the checkpoint was made "
        f"with, as {KEY} or in {', '.join(OLDER_CONFIGS)}"
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]
