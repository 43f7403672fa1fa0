"""What a lint looks at: the weights and settings of one checkpoint, whichever format stores them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from quantriage.diagnose.lint.names import BlockName, fused_by_suffix, in_blocks
from quantriage.errors import CheckpointError
from quantriage.formats.weight_source import WeightSource

_BUFFERS = ("inv_freq", "masked_bias", "rotary_emb")  # computed on loading; files of some versions hold them


@dataclass(frozen=True)
class Subject:
    """A checkpoint for the checks. Only headers are read to make one.

    settings: the text model's config as a dict, defaults filled in.
    quantization: the quantization_config as stored, empty for GGUF and dense ones.
    fused: groups of modules that engines fuse, as a run of the model showed; None: go by names.
    """

    weights: WeightSource
    kind: str
    settings: Mapping[str, object]
    quantization: Mapping[str, object] = field(default_factory=dict)
    fused: tuple[tuple[str, ...], ...] | None = None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Tensors that are weights of the model."""
        return tuple(n for n in self.weights.names() if not any(part in n for part in _BUFFERS))

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; some formats read a file for it, so it is asked for once."""
        if name not in self._shapes:
            self._shapes[name] = self.weights.shape(name)
        return self._shapes[name]

    @cached_property
    def blocks(self) -> dict[str, BlockName]:
        """Tensors inside the stack of blocks."""
        return in_blocks(self.names)

    @cached_property
    def matrices(self) -> tuple[str, ...]:
        """Modules with a two-dimensional weight inside the blocks."""
        return tuple(
            name.removesuffix(".weight")
            for name in self.blocks
            if name.endswith(".weight") and self._is_matrix(name)
        )

    def _is_matrix(self, name: str) -> bool:
        try:
            return len(self.shape(name)) == 2
        except CheckpointError:  # its parts contradict the config: a finding of its own
            return True

    @cached_property
    def fused_groups(self) -> tuple[tuple[str, ...], ...]:
        """Modules that engines fuse."""
        return fused_by_suffix(self.matrices) if self.fused is None else self.fused

    def setting(self, key: str) -> int | None:
        """An integer setting, None if it is absent or something else."""
        value = self.settings.get(key)
        return value if type(value) is int else None
