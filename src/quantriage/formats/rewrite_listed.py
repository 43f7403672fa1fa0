"""Formats that are read but not written here: their modules can only be given back full precision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from quantriage.errors import CheckpointError
from quantriage.formats.rewrite import Way
from quantriage.formats.rewrite_folder import Settings
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme


@dataclass(frozen=True)
class ListedCodec:
    """A Codec without an encoder. key: the config's list of modules in full precision.

    usual: what a loader excepts while there is no list; a list replaces it.
    """

    key: str
    usual: tuple[str, ...] = ()

    def own(self, module: str) -> tuple[Scheme, Tensor | None] | str:  # noqa: ARG002
        """Never: there is no encoder."""
        return "there is no encoder of this format here"

    def raised(self, module: str, menu: Sequence[Scheme]) -> tuple[Way, ...]:  # noqa: ARG002
        """No integers."""
        return ()

    def tensors(self, module: str, quantized: QuantizedTensor, raised: bool) -> dict[str, Tensor]:  # noqa: ARG002
        """Never asked for."""
        raise CheckpointError(f"{module}: cannot be stored in this format")

    def settings(self, settings: Settings, changed: Mapping[str, Way]) -> dict[str, object] | None:
        """With the modules on the list."""
        return listed(settings, self.key, self.usual, changed)


def listed(
    settings: Settings, key: str, usual: Sequence[str], changed: Mapping[str, Way]
) -> dict[str, object] | None:
    """Modules added to a list of exceptions; None if the list is none or a way is not full precision."""
    old = settings.get(key)
    names = list(usual) if old is None else old
    if not isinstance(names, list) or any(way.scheme is not None for way in changed.values()):
        return None
    return {**settings, key: [*names, *(module for module in changed if module not in names)]}
