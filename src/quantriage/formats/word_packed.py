"""Modules stored as `qweight`, `qzeros` and `scales`: the common ground of GPTQ, AWQ and AutoRound.

A layout says how the words of one module are read and written; which layout a module has is said by the
config alone, so a format is a function from module names to layouts. A module is quantized if its `qweight`
is in the files, whatever the config lists.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from quantriage.checkpoint.safetensors_source import SafetensorsSource
from quantriage.errors import BudgetError, CheckpointError
from quantriage.formats.module_patterns import refuse_slow
from quantriage.formats.packed_modules import FLOATS, PackedModules, PackedWeight, bytes_of
from quantriage.numerics.coded_weight import CodedWeight
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Granularity, PerChannel, PerGroup, PerTensor, Scheme
from quantriage.numerics.stored_weight import StoredWeight

QWEIGHT, QZEROS, SCALES, G_IDX = "qweight", "qzeros", "scales", "g_idx"
PARTS = (QWEIGHT, QZEROS, SCALES, G_IDX)
PER_CHANNEL = -1

Headers = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""dtype and shape by part."""


class Layout(Protocol):
    """How one module is stored. Raises CheckpointError where what is stored does not fit."""

    @property
    def word(self) -> str:
        """The layout's name in records."""
        ...

    def shape(self, module: str, headers: Headers) -> tuple[int, int]:
        """Logical shape [out, in], after checking dtype and shape of every part."""
        ...

    def read(self, module: str, tensors: Mapping[str, Tensor]) -> CodedWeight:
        """The weight of parts by name, scales and zero points [out, groups]."""
        ...

    def write(
        self, module: str, weight: QuantizedTensor, column_group: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The tensors stored for `module`, by full name; column_group: int64 [in], if groups are no runs."""
        ...

    def supports(self, scheme: Scheme, shape: tuple[int, int]) -> str | None:
        """None, or why a weight of `shape` [out, in] cannot be stored so."""
        ...

    def with_scheme(self, scheme: Scheme) -> "Layout":
        """This layout for a module of another scheme."""
        ...


LayoutOf = Callable[[str], Layout]


@dataclass(frozen=True)
class WordPackedWeight:
    """The weight of `module`, a PackedWeight."""

    source: SafetensorsSource
    module: str
    layout: Layout

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape [out, in], from the headers alone."""
        entries = {part: self.source.entries[name][1] for part, name in self._names().items()}
        return self.layout.shape(
            self.module, {part: (entry.dtype, entry.meta.shape) for part, entry in entries.items()}
        )

    def dequantize(self) -> Tensor:
        """(code - zero point) * scale, exact in float32 [out, in]."""
        return self._read().dequantize()

    def stored(self) -> StoredWeight:
        """Zero points are given for symmetric schemes too, since the file has them."""
        return self._read().stored(self.layout.word, bytes_of(self.source, tuple(self._names().values())))

    def tensors(self) -> dict[str, Tensor]:
        """The stored parts, by full name."""
        return {name: self.source.get(name) for name in self._names().values()}

    def _read(self) -> CodedWeight:
        parts = {part: self.source.get(name) for part, name in self._names().items()}  # mapped, not read
        return self.layout.read(self.module, parts)

    def _names(self) -> dict[str, str]:
        """Full names of the parts that exist, by part."""
        full = {part: f"{self.module}.{part}" for part in PARTS}
        return {part: name for part, name in full.items() if name in self.source.entries}


def open_word_packed(source: SafetensorsSource, layout_of: LayoutOf, where: str) -> PackedModules:
    """See packed modules as weights. Raises CheckpointError for parts without codes or a weight twice."""
    packed: dict[str, PackedWeight] = {}
    visible: list[str] = []
    started = time.process_time()
    for name in source.names():
        module, _, part = name.rpartition(".")
        refuse_slow(started, where)
        if part == QWEIGHT:
            if f"{module}.weight" in source.entries:
                raise CheckpointError(f"{where}: {module!r} is stored packed and as a dense weight")
            packed[f"{module}.weight"] = WordPackedWeight(source, module, layout_of(module))
            visible.append(f"{module}.weight")
        elif part not in PARTS:
            visible.append(name)
        elif f"{module}.{QWEIGHT}" not in source.entries:
            raise CheckpointError(f"{where}: {name!r} is there, {module}.{QWEIGHT} is not; fetch it again")
    return PackedModules(source, packed, tuple(visible))


def headers_of(tensors: Mapping[str, Tensor]) -> Headers:
    """What a file's header would say."""
    return {part: (tensor.dtype, tuple(tensor.shape)) for part, tensor in tensors.items()}


def matrix(module: str, part: str, headers: Headers, dtypes: tuple[torch.dtype, ...]) -> tuple[int, int]:
    """Shape of a part of two dimensions, neither of which is zero."""
    wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    if part not in headers:
        raise CheckpointError(f"{module}: {part} is missing from the checkpoint; fetch it again")
    dtype, shape = headers[part]
    if dtype not in dtypes or len(shape) != 2 or 0 in shape:
        raise CheckpointError(
            f"{module}: {part} is {str(dtype).removeprefix('torch.')} {shape}; expected a matrix of {wanted}"
        )
    return shape[0], shape[1]


def check_groups(module: str, headers: Headers, groups: int, columns: int, words: int) -> None:
    """Hold scales against [groups, columns] and zero points against [groups, words]."""
    for part, dtypes, expected in (
        (SCALES, FLOATS, (groups, columns)),
        (QZEROS, (torch.int32,), (groups, words)),
    ):
        found = matrix(module, part, headers, dtypes)
        if found != expected:
            raise CheckpointError(
                f"{module}: {part} has shape {found}; bits and group size of the config need {expected}"
            )


def group_width(group_size: int, columns: int) -> int:
    """Columns that share a scale."""
    return columns if group_size == PER_CHANNEL else min(group_size, columns)


def granularity(group_size: int, columns: int) -> Granularity:
    """What a config's group size comes to; a group wider than the row is the row."""
    return PerChannel() if group_size == PER_CHANNEL or group_size > columns else PerGroup(group_size)


def refusal(scheme: Scheme, shape: tuple[int, int], group_size: int) -> str | None:
    """Why no layout of this group size can hold a scheme, or None."""
    if isinstance(scheme.granularity, PerTensor):
        return "one scale for the whole weight; this format has one for each group or row"
    if scheme.scale_dtype == "float32":
        return "float32 scales; loaders of this format hold them in 16 bits"
    try:
        width = scheme.group_width(shape[1])
    except BudgetError as error:
        return str(error)
    if width != group_width(group_size, shape[1]):
        return f"scheme {scheme} in a layout of group size {group_size}"
    return None


def size_of(scheme: Scheme) -> int:
    """The config's word for a granularity."""
    return scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else PER_CHANNEL


def rewrite(
    layout: Layout,
    module: str,
    weight: QuantizedTensor,
    existing: Mapping[str, Tensor],
    column_group: Tensor | None = None,
) -> dict[str, Tensor]:
    """New tensors for a module, with the parts and dtypes that the checkpoint has for it; by full name.

    Raises CheckpointError if the scales are not numbers of the stored dtype: rounding them afterwards would
    change the weight that was chosen.
    """
    written = layout.write(module, weight, column_group)
    scales = f"{module}.{SCALES}"
    dtype = existing[scales].dtype
    if not torch.equal(written[scales].to(dtype).to(torch.float32), written[scales].to(torch.float32)):
        raise CheckpointError(f"{module}: its scales are {dtype}; choose the new ones in that dtype")
    written[scales] = written[scales].to(dtype)
    if column_group is not None and f"{module}.{G_IDX}" not in existing:
        raise CheckpointError(f"{module}: stored without {G_IDX}; it cannot hold columns out of order")
    return {name: tensor for name, tensor in written.items() if name in existing}
