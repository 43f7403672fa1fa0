"""How the integers of a folder are written: compressed-tensors, GPTQ or AWQ; each module, and the config.

One object is made for one assignment of schemes to modules. GPTQ and AWQ have one scheme in their config;
GPTQ tells other modules' by GPTQModel's `dynamic` rules, AWQ has none. Both store zero points for symmetric
schemes too, version 1 of GPTQ minus one, which is what every loader of the format reads.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from quantriage.errors import BudgetError
from quantriage.formats import awq, compressed_config, compressed_tensors, gptq
from quantriage.formats.rewrite import Way
from quantriage.formats.rewrite_words import rules_of_gptq
from quantriage.formats.word_packed import size_of
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme

_VERSION = 1


class FolderFormat(Protocol):
    """Writes the modules of one assignment."""

    def supports(self, scheme: Scheme, shape: tuple[int, int], transposed: bool) -> str | None:
        """None, or why a weight of `shape` [out, in] cannot be stored so; transposed: Conv1D's [in, out]."""
        ...

    def tensors(self, module: str, quantized: QuantizedTensor) -> dict[str, Tensor]:
        """What is stored for `module`, by full name."""
        ...

    def config(self, dense: Collection[str], others: Collection[str]) -> dict[str, object]:
        """`quantization_config`; dense: sites in full precision, others: matrices that are no sites."""
        ...


@dataclass(frozen=True)
class CompressedFolder:
    """compressed-tensors, `pack-quantized`."""

    schemes: Mapping[str, Scheme]

    def supports(self, scheme: Scheme, shape: tuple[int, int], transposed: bool) -> str | None:
        """Every integer scheme whose groups divide the row."""
        return compressed_tensors.supports(scheme, shape, transposed)

    def tensors(self, module: str, quantized: QuantizedTensor) -> dict[str, Tensor]:
        """Packed codes, scales, zero points and shape."""
        return compressed_tensors.write(module, quantized)

    def config(self, dense: Collection[str], others: Collection[str]) -> dict[str, object]:
        """A group of modules for each scheme."""
        return compressed_config.config(self.schemes, [*dense, *others], act_order=True)


class _WordFolder(ABC):
    """What GPTQ and AWQ share: words of codes, and one scheme, the commonest, that the config says."""

    def __init__(self, schemes: Mapping[str, Scheme]) -> None:
        if not schemes:
            raise BudgetError("every layer stays in full precision; expected at least one to be quantized")
        self.schemes = schemes
        self.base = Counter(schemes.values()).most_common(1)[0][0]

    def supports(self, scheme: Scheme, shape: tuple[int, int], transposed: bool) -> str | None:
        """Why not, by the format, by how the module is stored, or by its shape."""
        if refused := self._refused(scheme):
            return refused
        if transposed:
            return "stored transposed [in, out] (Conv1D); loaders take nn.Linear weights only"
        return self._layout(scheme).supports(scheme, shape)

    def tensors(self, module: str, quantized: QuantizedTensor) -> dict[str, Tensor]:
        """qweight, qzeros, scales, and what else the layout has."""
        return self._layout(quantized.scheme).write(module, quantized)

    @abstractmethod
    def config(self, dense: Collection[str], others: Collection[str]) -> dict[str, object]:
        """`quantization_config`."""

    @abstractmethod
    def _refused(self, scheme: Scheme) -> str | None: ...

    @abstractmethod
    def _layout(self, scheme: Scheme) -> gptq.GptqLayout | awq.AwqLayout: ...


class GptqFolder(_WordFolder):
    """GPTQ, version 1. Groups are runs of columns, so that no kernel needs `desc_act`."""

    def config(self, dense: Collection[str], others: Collection[str]) -> dict[str, object]:  # noqa: ARG002
        """The commonest scheme for all, a rule for each module that has another or none."""
        found: dict[str, object] = {
            "quant_method": gptq.METHOD,
            "checkpoint_format": "gptq",
            "bits": self.base.grid.bits,
            "group_size": size_of(self.base),
            "sym": self.base.grid.symmetric,
            "desc_act": False,
            "lm_head": False,
        }
        changed = {m: Way(str(s), 0, s) for m, s in self.schemes.items() if s != self.base}
        changed |= {module: Way("dense", 0, None) for module in dense}
        return rules_of_gptq(found, changed) or found

    def _refused(self, scheme: Scheme) -> str | None:
        if scheme.in_blocks or scheme.grid.bits not in gptq.BITS:
            return f"{scheme} in a GPTQ layout, which holds {', '.join(map(str, gptq.BITS))} bits"
        return None

    def _layout(self, scheme: Scheme) -> gptq.GptqLayout:
        return gptq.GptqLayout(scheme.grid.bits, size_of(scheme), scheme.grid.symmetric, False, _VERSION)


class AwqFolder(_WordFolder):
    """AWQ's GEMM layout: 4 bits, one scheme for all."""

    def config(self, dense: Collection[str], others: Collection[str]) -> dict[str, object]:  # noqa: ARG002
        """The scheme, and a list of sites in full precision."""
        return {
            "quant_method": awq.METHOD,
            "version": "gemm",
            "bits": awq.BITS,
            "group_size": size_of(self.base),
            "zero_point": not self.base.grid.symmetric,
            "modules_to_not_convert": ["lm_head", *dense],
        }

    def _refused(self, scheme: Scheme) -> str | None:
        if scheme.in_blocks:
            return f"{scheme} in an AWQ layout, which holds 4 bits"
        if scheme != self.base:
            return f"{scheme} beside {self.base}; AWQ has one scheme for all modules"
        return None

    def _layout(self, scheme: Scheme) -> awq.AwqLayout:
        return awq.AwqLayout(size_of(scheme), scheme.grid.symmetric)


FOLDERS: dict[str, type[CompressedFolder] | type[GptqFolder] | type[AwqFolder]] = {
    compressed_config.METHOD: CompressedFolder,
    gptq.METHOD: GptqFolder,
    awq.METHOD: AwqFolder,
}
"""By what a target stores."""
