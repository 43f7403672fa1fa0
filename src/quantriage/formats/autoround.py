"""AutoRound's own checkpoints: GPTQ's or AWQ's layout under a config of its own.

`packing_format` names the layout; "auto_round:auto_gptq" stores zero points minus one like GPTQ's version 1,
"auto_round" and "auto_round:gptqmodel" as they are. `extra_config` gives single modules their own bits, group
size and symmetry, by full name or by a regular expression that is searched for in the name. Here GPTQ's
layout also comes in 5, 6 and 7 bits. A module of 16 bits is dense.
"""

import re
from collections.abc import Mapping

from quantriage.checkpoint.safetensors_source import SafetensorsSource
from quantriage.errors import CheckpointError
from quantriage.formats.awq import read_awq_layout
from quantriage.formats.gptq import read_layout
from quantriage.formats.module_patterns import read_patterns
from quantriage.formats.packed_modules import PackedModules
from quantriage.formats.word_packed import QWEIGHT, Layout, LayoutOf, open_word_packed, size_of
from quantriage.numerics.schemes import Scheme

METHOD, METHOD_OF_INTEL = "auto-round", "intel/auto-round"
_AWQ = 0
_VERSIONS = {
    "auto": 1,
    "auto_round:gptq": 1,
    "auto_round:auto_gptq": 1,
    "auto_round": 2,
    "auto_round:gptqmodel": 2,
    "auto_round:awq": _AWQ,
    "auto_round:auto_awq": _AWQ,
}
_BITS = range(2, 9)
_DENSE_BITS = 16


def autoround_layouts(quantization: Mapping[str, object], modules: frozenset[str], where: str) -> LayoutOf:
    """The layout of each module; `modules` are all there are. Raises CheckpointError for what is not read."""
    packing = quantization.get("packing_format", "auto_round:auto_gptq")
    if not isinstance(packing, str) or packing not in _VERSIONS:
        raise CheckpointError(f"{where}: packing_format {packing!r} is not read; {', '.join(_VERSIONS)} are")
    for name in ("rotation_config", "spinquant_config"):
        if quantization.get(name):
            raise CheckpointError(f"{where}: {name} rotates the model while it runs, which is not read")
    extra = quantization.get("extra_config") or {}
    if not isinstance(extra, dict) or not all(isinstance(rule, dict) for rule in extra.values()):
        raise CheckpointError(f"{where}: extra_config is not an object of settings by module")
    texts = [text for text in extra if text not in modules]
    patterns = read_patterns(texts, where, searched=True)

    def layout_of(module: str) -> Layout:
        number = patterns.first(module)
        rule = module if module in extra else None if number is None else texts[number]
        settings = {**quantization, **({} if rule is None else extra[rule])}
        return _layout(settings, _VERSIONS[packing], where if rule is None else f"{where}: {rule[:100]!r}")

    return layout_of


def _layout(settings: Mapping[str, object], version: int, where: str) -> Layout:
    """Check one module's settings."""
    kind, act_bits = settings.get("data_type") or "int", settings.get("act_bits") or _DENSE_BITS
    if not isinstance(kind, str) or re.fullmatch(r"int(_a?sym)?", kind) is None:
        raise CheckpointError(f"{where}: data_type {kind!r} is not read; int is")
    if type(act_bits) is not int or act_bits < _DENSE_BITS:
        raise CheckpointError(f"{where}: quantized activations ({act_bits!r} bits) are not read")
    if version == _AWQ:
        return read_awq_layout(settings, settings.get("sym", True), where)
    return read_layout({**settings, "desc_act": False}, version, _BITS, where)


def open_autoround(
    source: SafetensorsSource, quantization: Mapping[str, object], where: str
) -> PackedModules:
    """See packed modules as weights. Raises CheckpointError for what is not read."""
    modules = frozenset(
        name.rpartition(".")[0] for name in source.names() if name.endswith((f".{QWEIGHT}", ".weight"))
    )
    return open_word_packed(source, autoround_layouts(quantization, modules, where), where)


def with_override(quantization: Mapping[str, object], module: str, scheme: Scheme) -> dict[str, object]:
    """The config of a checkpoint in which `module` now has another scheme; full names win over patterns."""
    old = quantization.get("extra_config")
    rule = {"bits": scheme.grid.bits, "group_size": size_of(scheme), "sym": scheme.grid.symmetric}
    return {**quantization, "extra_config": {**(old if isinstance(old, dict) else {}), module: rule}}
