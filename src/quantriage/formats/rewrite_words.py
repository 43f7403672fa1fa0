"""GPTQ, AWQ and AutoRound modules written again, and how each config says that a module differs."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from quantriage.errors import CheckpointError
from quantriage.formats import autoround, gptq
from quantriage.formats.checkpoint import Checkpoint
from quantriage.formats.packed_modules import PackedModules
from quantriage.formats.rewrite import Way, grouped_scheme
from quantriage.formats.rewrite_folder import Settings
from quantriage.formats.rewrite_listed import listed
from quantriage.formats.word_packed import WordPackedWeight, rewrite
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import SCALE_BITS, Scheme

Rules = Callable[[Settings, Mapping[str, Way]], dict[str, object] | None]
"""(settings, modules stored in other ways) -> settings that say so, or None if they cannot."""


@dataclass(frozen=True)
class WordCodec:
    """A Codec of modules stored as qweight, qzeros and scales."""

    weights: PackedModules
    rules: Rules

    @staticmethod
    def of(checkpoint: Checkpoint, rules: Rules) -> "WordCodec":
        """For a checkpoint opened as `PackedModules`."""
        assert isinstance(checkpoint.weights, PackedModules)
        return WordCodec(checkpoint.weights, rules)

    def own(self, module: str) -> tuple[Scheme, Tensor | None] | str:
        """The scheme of equal groups; columns stay in the groups that g_idx gives them."""
        stored = self._packed(module).stored()
        scheme = grouped_scheme(stored)
        if scheme is None:
            return "its last group is short, or its groups differ in size"
        return scheme, stored.column_group

    def raised(self, module: str, menu: Sequence[Scheme]) -> tuple[Way, ...]:
        """Schemes of the menu that the layout holds and the config can name."""
        packed = self._packed(module)
        ways = []
        for scheme in menu:
            way = Way(str(scheme), self._nbytes(scheme, packed.shape), scheme)
            fits = packed.layout.with_scheme(scheme).supports(scheme, packed.shape) is None
            if fits and self.rules({}, {module: way}) is not None:
                ways.append(way)
        return tuple(ways)

    def tensors(self, module: str, quantized: QuantizedTensor, raised: bool) -> dict[str, Tensor]:
        """Parts and dtypes as the module has them now."""
        packed = self._packed(module)
        layout = packed.layout.with_scheme(quantized.scheme)
        group = None if raised else packed.stored().column_group
        return rewrite(layout, module, quantized, packed.tensors(), group)

    def settings(self, settings: Settings, changed: Mapping[str, Way]) -> dict[str, object] | None:
        """By the format's own rules."""
        return self.rules(settings, changed)

    def _packed(self, module: str) -> WordPackedWeight:
        found = self.weights.packed[f"{module}.weight"]
        if not isinstance(found, WordPackedWeight):
            raise CheckpointError(f"{module}: is not stored as words")
        return found

    def _nbytes(self, scheme: Scheme, shape: tuple[int, int]) -> int:
        """Codes, scales and zero points (which are always stored), and g_idx."""
        scales = scheme.scale_count(shape)
        bits = shape[0] * shape[1] * scheme.grid.bits
        bits += scales * (SCALE_BITS[scheme.scale_dtype] + scheme.grid.bits)
        return bits // 8 + 4 * shape[1]


def rules_of_gptq(settings: Settings, changed: Mapping[str, Way]) -> dict[str, object] | None:
    """GPTQModel's `dynamic`; the first rule that fits wins, so new ones stand before all others."""
    found = dict(settings)
    for module, way in changed.items():
        if way.scheme is not None:
            found = gptq.with_override(found, module, way.scheme)
            continue
        old = found.get("dynamic")
        rest = old if isinstance(old, dict) else {}
        found = {**found, "dynamic": {f"-:^{re.escape(module)}$": {}, **rest}}
    return found


def rules_of_autoround(settings: Settings, changed: Mapping[str, Way]) -> dict[str, object] | None:
    """AutoRound's `extra_config`, where 16 bits are full precision."""
    found = dict(settings)
    for module, way in changed.items():
        if way.scheme is not None:
            found = autoround.with_override(found, module, way.scheme)
            continue
        old = found.get("extra_config")
        rest = old if isinstance(old, dict) else {}
        found = {**found, "extra_config": {**rest, module: {"bits": 16, "data_type": "float"}}}
    return found


def exceptions_of_awq(settings: Settings, changed: Mapping[str, Way]) -> dict[str, object] | None:
    """AWQ has one width for all, and a list of modules in full precision."""
    return listed(settings, "modules_to_not_convert", (), changed)
