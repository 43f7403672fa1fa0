"""Where a checkpoint's quantization_config says one thing and the tensors another.

Engines pick kernels by the config, so a lie there is a fault even if our reader goes by the tensors.
Modules that the config names one by one are left out: their entry, not the general one, holds for them.
"""

from collections.abc import Mapping

from quantriage.diagnose.lint.catalogue import finding
from quantriage.diagnose.lint.names import declared
from quantriage.diagnose.lint.subject import Subject
from quantriage.diagnose.lint.summary import SiteSummary
from quantriage.records.diagnosis import LintFinding

_BITS = ("bits", "w_bit", "nbits")
_GROUP = ("group_size", "q_group_size")


def check_declared(subject: Subject, sites: Mapping[str, SiteSummary]) -> list[LintFinding]:
    """Bits and group size of the config against those found; one finding for each kind of contradiction."""
    bits, group = (_number(subject.quantization, keys) for keys in (_BITS, _GROUP))
    wrong: dict[str, list[str]] = {}
    for module, site in sites.items():
        if not site.quantized or declared(module, subject.quantization):
            continue
        if bits is not None and 1 < bits <= 8 and site.levels != 1 << bits:
            wrong.setdefault(f"{site.levels} levels are stored, the config says {bits} bits", []).append(
                module
            )
        if group is not None and group > 0 and site.group is not None and site.group != group:
            text = f"groups of {site.group} are stored, the config says {group}"
            wrong.setdefault(text, []).append(module)
    return [
        finding("config-contradicts", modules[0] if len(modules) == 1 else None, _text(text, modules))
        for text, modules in wrong.items()
    ]


def _number(quantization: Mapping[str, object], keys: tuple[str, ...]) -> int | None:
    return next((value for key in keys if type(value := quantization.get(key)) is int), None)


def _text(text: str, modules: list[str]) -> str:
    return text if len(modules) == 1 else f"{text} (in {len(modules)} modules, first {modules[0]})"
