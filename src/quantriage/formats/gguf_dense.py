"""A Hugging Face folder written as a GGUF file of plain floats, one tensor in memory at a time."""

from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from quantriage.errors import CheckpointError
from quantriage.formats.checkpoint import Checkpoint
from quantriage.formats.gguf import GGUFWeights
from quantriage.formats.gguf_encode import ENCODERS
from quantriage.formats.gguf_outline import as_gguf, half_kind
from quantriage.formats.gguf_parts import encode_parts
from quantriage.formats.gguf_writer import rewrite_gguf
from quantriage.formats.weight_source import WeightSource


class DenseTensors(Mapping[str, tuple[str, bytes]]):
    """Type and bytes of every GGUF tensor of some weights in plain floats, made when asked for.

    file: says which GGUF tensors make a weight, and how; values: the weights, under Hugging Face names.
    kind: the type of matrices, None for the file's own; vectors keep the file's.
    """

    def __init__(
        self, file: GGUFWeights, values: WeightSource, names: Collection[str], kind: str | None = None
    ) -> None:
        self._file, self._values, self._kind = file, values, kind
        self._name_of = {part: name for name in names for part in file.parts[name]}
        self._latest = lru_cache(maxsize=1)(self._made)  # asked for several times in a row

    def __getitem__(self, part: str) -> tuple[str, bytes]:
        return self._latest(self._name_of[part])[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self._name_of)

    def __len__(self) -> int:
        return len(self._name_of)

    def __contains__(self, part: object) -> bool:
        return part in self._name_of  # without making it

    def _made(self, name: str) -> dict[str, tuple[str, bytes]]:
        made = {}
        for part, value in encode_parts(self._file, name, self._values.get(name)).items():
            kind = self._file.source.tensors[part].kind.name
            if value.ndim > 1 and self._kind is not None:
                kind = self._kind
            try:
                raw = ENCODERS[kind](value.reshape(-1, value.shape[-1]), None)
            except CheckpointError as error:
                raise CheckpointError(f"{name}: {error}") from error
            made[part] = kind, raw.contiguous().numpy().tobytes()
        return made


def write_dense_gguf(checkpoint: Checkpoint, out: Path, kind: str | None = None) -> None:
    """Write a folder as one GGUF file; matrices as `kind` (F32, F16, BF16), vectors as F32.

    kind: None for two bytes, BF16 where the folder has bfloat16. Peak memory: one tensor in float32, three
    times for those whose rows move. Raises CheckpointError for a folder that cannot be written as GGUF.
    """
    with as_gguf(checkpoint, kind or half_kind(checkpoint)) as outline:
        tensors = DenseTensors(outline, checkpoint.weights, outline.parts.keys())
        rewrite_gguf(outline.source.path, out, tensors)
