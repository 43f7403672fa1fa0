"""AWQ checkpoints in the GEMM version: 4-bit codes packed along the outputs, in the order the kernel unpacks.

Stored for a module with weight [out, in]: `qweight` [in, out / 8], `qzeros` [groups, out / 8] and `scales`
[groups, out]; value = (code - zero) * scale, zero points as they are. AWQ's scaling of inputs is folded into
the norms before, so nothing else is needed to read a weight. Exact in float32; upstream multiplies in
float16, which rounds the product once. The other versions (GEMV, Marlin, ExLlama) order their words
differently, and GPTQModel alone writes other widths.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantriage.checkpoint.safetensors_source import SafetensorsSource
from quantriage.errors import CheckpointError
from quantriage.formats.gptq_packing import pack_awq, unpack_awq
from quantriage.formats.packed_modules import PackedModules
from quantriage.formats.word_packed import (
    PER_CHANNEL,
    QWEIGHT,
    QZEROS,
    SCALES,
    Headers,
    LayoutOf,
    check_groups,
    granularity,
    group_width,
    headers_of,
    matrix,
    open_word_packed,
    refusal,
)
from quantriage.numerics.coded_weight import CodedWeight
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import IntGrid, Scheme

METHOD = "awq"
BITS = 4
_PER_WORD = 8
_CENTER = 8


@dataclass(frozen=True)
class AwqLayout:
    """How a module is stored. group_size: -1 for one group a row."""

    group_size: int
    symmetric: bool

    @property
    def word(self) -> str:
        """The layout's name in records."""
        return "awq-gemm"

    def shape(self, module: str, headers: Headers) -> tuple[int, int]:
        """Logical shape [out, in], after checking dtype and shape of every part."""
        columns, words = matrix(module, QWEIGHT, headers, (torch.int32,))
        width = group_width(self.group_size, columns)
        if columns % width:
            raise CheckpointError(f"{module}: {columns} inputs are no multiple of group_size {width}")
        check_groups(module, headers, columns // width, words * _PER_WORD, words)
        return words * _PER_WORD, columns

    def read(self, module: str, tensors: Mapping[str, Tensor]) -> CodedWeight:
        """The weight of parts by name, scales and zero points [out, groups]."""
        rows, columns = self.shape(module, headers_of(tensors))
        zeros = unpack_awq(tensors[QZEROS], rows).T.contiguous()  # [out, groups]
        return CodedWeight(
            grid=IntGrid(BITS, self.symmetric and bool((zeros == _CENTER).all())),
            layout=granularity(self.group_size, columns),
            codes=unpack_awq(tensors[QWEIGHT], rows).T.contiguous(),
            scale=tensors[SCALES].T.to(torch.float32).contiguous(),
            scale_dtype=str(tensors[SCALES].dtype).removeprefix("torch."),
            zero_point=zeros,
        )

    def write(
        self, module: str, weight: QuantizedTensor, column_group: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The tensors stored for `module`, by full name, scales in the weight's own dtype."""
        reason = self.supports(weight.scheme, weight.shape)
        if reason is None and column_group is not None:
            reason = "AWQ has no index of columns; groups are runs"
        if reason is not None:
            raise CheckpointError(f"{module}: {reason}")
        zeros = weight.zero_point
        if zeros is None:
            zeros = torch.full(weight.scale.shape, _CENTER, dtype=torch.uint8)
        parts = {
            QWEIGHT: pack_awq(weight.codes.T.contiguous()),
            QZEROS: pack_awq(zeros.T.contiguous()),
            SCALES: weight.scale.T.contiguous(),
        }
        return {f"{module}.{part}": tensor for part, tensor in parts.items()}

    def supports(self, scheme: Scheme, shape: tuple[int, int]) -> str | None:
        """None, or why a weight of `shape` [out, in] cannot be stored so."""
        if scheme.grid.bits != BITS:
            return f"{scheme.grid.bits} bits; AWQ's GEMM version holds {BITS}"
        if shape[0] % _PER_WORD:
            return f"out_features {shape[0]} is not a multiple of {_PER_WORD}"
        return refusal(scheme, shape, self.group_size)

    def with_scheme(self, scheme: Scheme) -> "AwqLayout":
        """This layout for a module of another scheme; `supports` says if a checkpoint may hold it."""
        return replace(self, symmetric=scheme.grid.symmetric)


def read_awq_layout(settings: Mapping[str, object], symmetric: object, where: str) -> AwqLayout:
    """The layout that `bits` and `group_size` say. Raises CheckpointError for other widths."""
    bits = settings.get("bits", settings.get("w_bit"))
    size = settings.get("group_size", settings.get("q_group_size", PER_CHANNEL))
    if type(bits) is not int or bits != BITS:
        raise CheckpointError(f"{where}: AWQ codes of {bits!r} bits are not read; {BITS} are")
    if type(size) is not int or (size < 1 and size != PER_CHANNEL):
        raise CheckpointError(f"{where}: group_size is {size!r}; expected -1 or a positive number")
    if not isinstance(symmetric, bool):
        raise CheckpointError(f"{where}: symmetric or not is said by {symmetric!r}; expected true or false")
    return AwqLayout(size, symmetric)


def awq_layouts(quantization: Mapping[str, object], where: str) -> LayoutOf:
    """The layout of each module, one for all. Raises CheckpointError."""
    version = quantization.get("version") or quantization.get("checkpoint_format") or "gemm"
    if not isinstance(version, str) or version.lower() != "gemm":
        raise CheckpointError(
            f"{where}: AWQ version {version!r} is not read, gemm is; its words are in another order"
        )
    for rule in _rules(quantization.get("dynamic"), where):
        if {"bits", "group_size"} & rule.keys():
            raise CheckpointError(f"{where}: AWQ with bits or groups of its own for some modules is not read")
    has_zero_point = quantization.get("zero_point", True)
    symmetric = not has_zero_point if isinstance(has_zero_point, bool) else has_zero_point
    layout = read_awq_layout(quantization, symmetric, where)
    return lambda _: layout


def _rules(dynamic: object, where: str) -> list[dict[str, object]]:
    """GPTQModel's rules for single modules."""
    if not isinstance(dynamic, dict | None):
        raise CheckpointError(f"{where}: dynamic is not an object of rules by pattern")
    return [rule for rule in (dynamic or {}).values() if isinstance(rule, dict)]


def open_awq(source: SafetensorsSource, quantization: Mapping[str, object], where: str) -> PackedModules:
    """See packed modules as weights. Raises CheckpointError for what is not read."""
    return open_word_packed(source, awq_layouts(quantization, where), where)
