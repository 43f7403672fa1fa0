"""compressed-tensors modules written again, and config groups that name every module of a changed group.

A class such as "Linear" or a regular expression may match a module that now has a scheme of its own, and
loaders disagree on which of two matching groups wins. A group that would still match is therefore given the
full names of its modules, as our own exports have them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.errors import CheckpointError
from quantriage.formats import compressed_config, compressed_plain, compressed_tensors
from quantriage.formats.checkpoint import Checkpoint
from quantriage.formats.compressed_groups import SchemeGroup, read_groups, scheme_for
from quantriage.formats.compressed_parts import SCALE, WEIGHT, ZERO_POINT
from quantriage.formats.compressed_weights import CompressedWeights
from quantriage.formats.rewrite import Way, grouped_scheme
from quantriage.formats.rewrite_folder import Settings
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme

_PLAIN = (compressed_plain.INT, compressed_plain.NAIVE)


@dataclass(frozen=True)
class CompressedCodec:
    """A Codec of compressed-tensors: integers, packed or one to a byte."""

    weights: CompressedWeights

    @staticmethod
    def of(checkpoint: Checkpoint) -> "CompressedCodec":
        """For a checkpoint opened as `CompressedWeights`."""
        assert isinstance(checkpoint.weights, CompressedWeights)
        return CompressedCodec(checkpoint.weights)

    def own(self, module: str) -> tuple[Scheme, Tensor | None] | str:
        """Integer schemes; floats have no encoder here."""
        stored = self.weights.stored(module)
        assert stored is not None
        if self.weights.schemes[module].format not in (compressed_tensors.FORMAT, *_PLAIN):
            return f"there is no encoder of {stored.layout} here"
        scheme = grouped_scheme(stored)
        return (scheme, stored.column_group) if scheme is not None else f"{stored.layout} of unequal groups"

    def raised(self, module: str, menu: Sequence[Scheme]) -> tuple[Way, ...]:
        """Schemes of the menu, where weights alone are quantized: activations belong to a whole group."""
        if self.weights.schemes[module].format != compressed_tensors.FORMAT:
            return ()
        rows, columns = self.weights.shape(f"{module}.{WEIGHT}")
        fitting = [s for s in menu if compressed_tensors.supports(s, (rows, columns), False) is None]
        return tuple(Way(str(s), compressed_tensors.stored_bytes(s, (rows, columns)), s) for s in fitting)

    def tensors(self, module: str, quantized: QuantizedTensor, raised: bool) -> dict[str, Tensor]:
        """Packed; for a module stored one code to a byte, its weight, scale and zero point as shaped now."""
        if raised or self.weights.schemes[module].format == compressed_tensors.FORMAT:
            written = compressed_tensors.write(module, quantized)
        else:
            written = _plain(module, quantized)
        if raised:
            return written
        found = {}
        for name, tensor in written.items():
            if name not in self.weights.source.entries:
                raise CheckpointError(f"{module}: {name!r} would be new; the module is stored in another way")
            shape = self.weights.source.meta(name).shape
            same = torch.Size(shape).numel() == tensor.numel() and not name.endswith((WEIGHT, "packed"))
            found[name] = tensor.reshape(shape) if same else tensor
        return found

    def settings(self, settings: Settings, changed: Mapping[str, Way]) -> dict[str, object] | None:
        """Old groups without the changed modules, new groups for those, full precision on `ignore`."""
        groups = settings.get("config_groups")
        if not isinstance(groups, dict):
            return None
        read = {
            name: read_groups({**settings, "config_groups": {name: g}}, name) for name, g in groups.items()
        }
        members = self._members(read)
        kept: dict[str, object] = {}
        for name, group in groups.items():
            if not members.get(name, frozenset()) & changed.keys():
                kept[name] = group
                continue
            left = [m for m in self.weights.schemes if m in members[name] and m not in changed]
            if left:
                compact = len(left) > compressed_config.MOST_NAMES
                kept[name] = {**group, "targets": compressed_config.targets(left, compact)}
        packed = {module: way.scheme for module, way in changed.items() if way.scheme is not None}
        made = compressed_config.config(packed, ())["config_groups"]
        assert isinstance(made, dict)
        new = {f"repaired_{number}": group for number, group in enumerate(made.values())}
        old = settings.get("ignore") or []
        dense = [module for module, way in changed.items() if way.scheme is None]
        assert isinstance(old, list)
        ignored = [*old, *(m for m in dense if m not in old)]
        return {**settings, "config_groups": {**kept, **new}, "ignore": ignored}

    def _members(self, read: Mapping[str, Sequence[SchemeGroup]]) -> dict[str, frozenset[str]]:
        """The modules that each group stores, by the reader's own rule."""
        everything = [group for groups in read.values() for group in groups]
        owner = {id(group.scheme): name for name, groups in read.items() for group in groups}
        found: dict[str, set[str]] = {}
        for module in self.weights.schemes:
            scheme = scheme_for(module, everything, "config")
            found.setdefault(owner[id(scheme)], set()).add(module)
        return {name: frozenset(modules) for name, modules in found.items()}


def _plain(module: str, quantized: QuantizedTensor) -> dict[str, Tensor]:
    """Signed codes of one byte."""
    center = quantized.scheme.grid.center
    found = {
        WEIGHT: (quantized.codes.to(torch.int16) - center).to(torch.int8),
        SCALE: quantized.scale,
    }
    if quantized.zero_point is not None:
        found[ZERO_POINT] = (quantized.zero_point.to(torch.int16) - center).to(torch.int8)
    return {f"{module}.{part}": tensor for part, tensor in found.items()}
