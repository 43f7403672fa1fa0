"""Which tensors of two files or folders hold the same bytes under the same name, type and shape."""

from pathlib import Path

from quantriage.checkpoint.gguf_file import open_gguf
from quantriage.checkpoint.mapped import map_bytes
from quantriage.checkpoint.safetensors_source import open_safetensors

_PIECE = 4 << 20
Place = tuple[str, tuple[int, ...], Path, int, int]  # type, shape, file, begin, bytes


def differing(before: Path, after: Path) -> tuple[int, tuple[str, ...]]:
    """How many tensors are the same in both, and the names of all others of either.

    Reads both completely. Memory: pages of the files that the system may drop. Raises CheckpointError.
    """
    old, new = _places(before), _places(after)
    names = sorted(old.keys() | new.keys())
    changed = tuple(n for n in names if n not in old or n not in new or not _same(old[n], new[n]))
    return len(names) - len(changed), changed


def _places(path: Path) -> dict[str, Place]:
    if path.suffix == ".gguf":
        tensors = open_gguf(path).tensors
        return {n: (t.kind.name, t.meta.shape, path, t.begin, t.meta.nbytes) for n, t in tensors.items()}
    entries = open_safetensors(path).entries
    return {n: (e.meta.dtype, e.meta.shape, file, e.begin, e.meta.nbytes) for n, (file, e) in entries.items()}


def _same(one: Place, other: Place) -> bool:
    if (*one[:2], one[4]) != (*other[:2], other[4]):
        return False
    for start in range(0, one[4], _PIECE):
        length = min(_PIECE, one[4] - start)
        if map_bytes(one[2], one[3] + start, length) != map_bytes(other[2], other[3] + start, length):
            return False
    return True
