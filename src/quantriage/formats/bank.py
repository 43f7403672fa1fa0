"""A run's own store of quantized candidates: several schemes of every site, so that mixes can be tried.

And of a block's vectors (norms, biases) where they were learned along with its candidates. One safetensors
file per block, and one for embedding and head, written whole by temporary name and renamed, codes packed to
their true width.
Quantizing again for every mix was rejected: the Hessian passes cost minutes, reading a candidate costs
milliseconds, and what was measured is then byte for byte what ships.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from quantriage.numerics.block_tensor import BlockTensor
from quantriage.numerics.packing import pack, unpack
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme
from quantriage.records.atomic import write_bytes
from quantriage.records.digest import bytes_digest

TensorReaders = dict[str, Callable[[], Tensor]]
"""Tensor name -> what reads it."""

_VECTOR = "vector|"


class CandidateBank:
    """Candidates under (site name, scheme) in a folder. Reading loads one candidate; writing, one block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, block: int | None) -> Path:
        """The file of one block; None for that of embedding and head."""
        return self._folder / ("ends.safetensors" if block is None else f"block-{block:05d}.safetensors")

    def write(
        self,
        block: int | None,
        candidates: Mapping[tuple[str, Scheme], QuantizedTensor | BlockTensor],
        vectors: Mapping[str, Tensor] | None = None,
    ) -> str:
        """Store all candidates of one block, and vectors by tensor name; returns the file's sha256."""
        tensors = {f"{_VECTOR}{name}": vector.contiguous() for name, vector in (vectors or {}).items()}
        shapes: dict[str, str] = {}
        for (site, scheme), quantized in candidates.items():
            key = f"{site}|{scheme}"
            shapes[key] = json.dumps([*quantized.shape, scheme.scale_dtype])
            if isinstance(quantized, BlockTensor):
                tensors[f"{key}|raw"] = quantized.raw.contiguous()
                continue
            tensors[f"{key}|codes"] = pack(quantized.codes, scheme.grid.bits)
            tensors[f"{key}|scale"] = quantized.scale.contiguous()
            if quantized.zero_point is not None:
                tensors[f"{key}|zero_point"] = quantized.zero_point.contiguous()
        data = save(tensors, metadata=shapes)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path(block), data)
        return bytes_digest(data)

    def read(self, block: int | None, site: str, scheme: Scheme) -> QuantizedTensor:
        """One candidate; KeyError if it was never written."""
        key = f"{site}|{scheme}"
        with safe_open(self.path(block), framework="pt") as file:
            shapes = file.metadata()
            if key not in shapes:
                raise KeyError(key)
            rows, columns, scale_dtype = json.loads(shapes[key])
            if scale_dtype != scheme.scale_dtype:
                raise KeyError(f"{key} with {scheme.scale_dtype} scales; stored with {scale_dtype}")
            codes = unpack(file.get_tensor(f"{key}|codes"), scheme.grid.bits, (rows, columns))
            zero_point = None
            if not scheme.grid.symmetric:
                zero_point = file.get_tensor(f"{key}|zero_point")
            return QuantizedTensor(scheme, codes, file.get_tensor(f"{key}|scale"), zero_point)

    def read_blocks(self, block: int | None, site: str, scheme: Scheme) -> BlockTensor:
        """One candidate in a GGUF type; KeyError if it was never written."""
        key = f"{site}|{scheme}"
        with safe_open(self.path(block), framework="pt") as file:
            if key not in file.metadata():
                raise KeyError(key)
            return BlockTensor(scheme, file.get_tensor(f"{key}|raw"))

    def candidate(self, block: int | None, site: str, scheme: Scheme) -> QuantizedTensor | BlockTensor:
        """One candidate as its scheme stores it; KeyError if it was never written."""
        return self.read_blocks(block, site, scheme) if scheme.in_blocks else self.read(block, site, scheme)

    def vectors(self, blocks: Iterable[int]) -> TensorReaders:
        """Readers of the vectors stored with some blocks, by tensor name; none for a block without a file."""
        found: TensorReaders = {}
        for path in filter(Path.is_file, map(self.path, blocks)):
            with safe_open(path, framework="pt") as file:
                names = [key for key in file.keys() if key.startswith(_VECTOR)]  # noqa: SIM118 (no mapping)
            found |= {name.removeprefix(_VECTOR): partial(_tensor, path, name) for name in names}
        return found

    def values(self, block: int | None, site: str, scheme: Scheme) -> Tensor:
        """One candidate dequantized, [out, in]."""
        return self.candidate(block, site, scheme).dequantize()


def _tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor
