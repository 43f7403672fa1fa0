"""GPTQ checkpoints (AutoGPTQ, GPTQModel): codes packed along the inputs, one group index for each column.

Stored for a module with weight [out, in]: `qweight` [words, out], `qzeros` [groups, words], `scales`
[groups, out] and `g_idx` [in]; value = scales[g_idx] * (code - zero). Groups need not be runs of columns
(`desc_act`). `checkpoint_format` "gptq" stores zero points minus one, "gptq_v2" as they are. Everything here
is exact in float32; GPTQModel's kernels round the product once, to the dtype of the scales.
"""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantriage.checkpoint.safetensors_source import SafetensorsSource
from quantriage.errors import CheckpointError
from quantriage.formats.gptq_packing import (
    pack,
    pack_zeros_v1,
    unpack,
    unpack_zeros_v1,
    word_count,
)
from quantriage.formats.module_patterns import read_patterns
from quantriage.formats.packed_modules import PackedModules
from quantriage.formats.word_packed import (
    G_IDX,
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
    size_of,
)
from quantriage.numerics.coded_weight import CodedWeight
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import IntGrid, Scheme

METHOD = "gptq"
BITS = (2, 3, 4, 8)
_VERSIONS = {"gptq": 1, "gptq_v2": 2}
_DENSE = "-:"


@dataclass(frozen=True)
class GptqLayout:
    """How a module is stored. group_size: -1 for one group a row; version: 1 stores zero points minus one.

    act_order: kernels look at g_idx; without it some take groups for runs of columns whatever g_idx says.
    """

    bits: int
    group_size: int
    symmetric: bool
    act_order: bool
    version: int

    @property
    def word(self) -> str:
        """The layout's name in records."""
        return f"gptq-v{self.version}"

    def shape(self, module: str, headers: Headers) -> tuple[int, int]:
        """Logical shape [out, in], after checking dtype and shape of every part."""
        words, rows = matrix(module, QWEIGHT, headers, (torch.int32,))
        columns, rest = divmod(words * 32, self.bits)
        if G_IDX in headers:
            dtype, found = headers[G_IDX]
            if dtype != torch.int32 or len(found) != 1:
                raise CheckpointError(f"{module}: {G_IDX} is {dtype} {found}; expected one int32 a column")
            columns = found[0]
        elif self.act_order:
            raise CheckpointError(f"{module}: {G_IDX} is missing, and the config says desc_act")
        elif rest:
            raise CheckpointError(f"{module}: {QWEIGHT} of {words} words a row cannot hold {self.bits} bits")
        if columns == 0 or words != word_count(columns, self.bits):
            raise CheckpointError(
                f"{module}: {QWEIGHT} has {words} words for {columns} inputs, "
                f"{32 * words / max(columns, 1):.3g} bits each; the config says {self.bits}"
            )
        groups = -(-columns // group_width(self.group_size, columns))
        check_groups(module, headers, groups, rows, word_count(rows, self.bits))
        return rows, columns

    def read(self, module: str, tensors: Mapping[str, Tensor]) -> CodedWeight:
        """The weight of parts by name, scales and zero points [out, groups]."""
        rows, columns = self.shape(module, headers_of(tensors))
        codes = unpack(tensors[QWEIGHT].T.contiguous(), self.bits, columns)
        unpack_zeros = unpack_zeros_v1 if self.version == 1 else unpack
        zeros = unpack_zeros(tensors[QZEROS], self.bits, rows).T.contiguous()  # [out, groups]
        groups = zeros.shape[1]
        symmetric = self.symmetric and bool((zeros == 1 << (self.bits - 1)).all())
        return CodedWeight(
            grid=IntGrid(self.bits, symmetric),
            layout=granularity(self.group_size, columns),
            codes=codes,
            scale=tensors[SCALES].T.to(torch.float32).contiguous(),
            scale_dtype=str(tensors[SCALES].dtype).removeprefix("torch."),
            zero_point=zeros,
            column_group=self._column_group(module, tensors.get(G_IDX), columns, groups),
        )

    def _column_group(self, module: str, stored: Tensor | None, columns: int, groups: int) -> Tensor | None:
        """int64 [in], or None if groups are runs of one width."""
        width = group_width(self.group_size, columns)
        runs = torch.arange(columns) // width
        found = runs if stored is None else stored.to(torch.int64)
        low, high = (int(value) for value in found.aminmax())
        if low < 0 or high >= groups:
            raise CheckpointError(f"{module}: {G_IDX} names groups {low} to {high}; there are {groups}")
        return None if columns % width == 0 and torch.equal(found, runs) else found

    def write(
        self, module: str, weight: QuantizedTensor, column_group: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The tensors stored for `module`, by full name, scales in the weight's own dtype.

        column_group: int64 [in], the column of scales for each input, if groups are not runs.
        """
        reason = self.supports(weight.scheme, weight.shape)
        if reason is not None:
            raise CheckpointError(f"{module}: {reason}")
        groups = torch.arange(weight.shape[1]) // weight.scheme.group_width(weight.shape[1])
        if column_group is not None and not torch.equal(column_group, groups):
            if not self.act_order:
                raise CheckpointError(f"{module}: columns out of order in a checkpoint without desc_act")
            groups = column_group
        zeros = weight.zero_point
        if zeros is None:
            zeros = torch.full(weight.scale.shape, weight.scheme.grid.center, dtype=torch.uint8)
        pack_zeros = pack_zeros_v1 if self.version == 1 else pack
        parts = {
            QWEIGHT: pack(weight.codes, self.bits).T.contiguous(),
            QZEROS: pack_zeros(zeros.T.contiguous(), self.bits),
            SCALES: weight.scale.T.contiguous(),
            G_IDX: groups.to(torch.int32),
        }
        return {f"{module}.{part}": tensor for part, tensor in parts.items()}

    def supports(self, scheme: Scheme, shape: tuple[int, int]) -> str | None:
        """None, or why a weight of `shape` [out, in] cannot be stored so."""
        if scheme.grid.bits != self.bits:
            return f"scheme {scheme} in a layout of {self.bits} bits"
        for name, count in (("in", shape[1]), ("out", shape[0])):
            if count * self.bits % 32:
                return f"{name}_features {count} of {self.bits} bits do not fill 32-bit words"
        return refusal(scheme, shape, self.group_size)

    def with_scheme(self, scheme: Scheme) -> "GptqLayout":
        """This layout for a module of another scheme."""
        size = size_of(scheme)
        return replace(self, bits=scheme.grid.bits, group_size=size, symmetric=scheme.grid.symmetric)


def read_layout(
    settings: Mapping[str, object], version: int, bits_read: Container[int], where: str
) -> GptqLayout:
    """The layout that `bits`, `group_size`, `sym` and `desc_act` of a config say. Raises CheckpointError."""
    bits, size = settings.get("bits"), settings.get("group_size", PER_CHANNEL)
    if type(bits) is not int or bits not in bits_read:
        raise CheckpointError(f"{where}: GPTQ codes of {bits!r} bits are not read")
    if type(size) is not int or (size < 1 and size != PER_CHANNEL):
        raise CheckpointError(f"{where}: group_size is {size!r}; expected -1 or a positive number")
    symmetric, act_order = settings.get("sym", True), settings.get("desc_act", False)
    if not isinstance(symmetric, bool) or not isinstance(act_order, bool):
        raise CheckpointError(
            f"{where}: sym {symmetric!r} and desc_act {act_order!r}; expected true or false"
        )
    return GptqLayout(bits, size, symmetric, act_order, version)


def gptq_layouts(quantization: Mapping[str, object], where: str) -> LayoutOf:
    """The layout of each module, GPTQModel's `dynamic` rules included. Raises CheckpointError."""
    stored = quantization.get("checkpoint_format") or quantization.get("format") or METHOD
    if not isinstance(stored, str) or stored not in _VERSIONS or quantization.get("is_marlin_format"):
        raise CheckpointError(f"{where}: GPTQ in format {stored!r} is not read; {', '.join(_VERSIONS)} are")
    if quantization.get("pack_dtype", "int32") != "int32":
        raise CheckpointError(f"{where}: pack_dtype {quantization['pack_dtype']!r} is not read; int32 is")
    if quantization.get("rotation"):
        raise CheckpointError(f"{where}: rotation {quantization['rotation']!r} is not read")
    rules = quantization.get("dynamic") or {}
    if not isinstance(rules, dict) or not all(isinstance(rule, dict | None) for rule in rules.values()):
        raise CheckpointError(f"{where}: dynamic is not an object of rules by pattern")
    texts = list(rules)
    patterns = read_patterns([text.removeprefix("+:").removeprefix(_DENSE) for text in texts], where)
    default = read_layout(quantization, _VERSIONS[stored], BITS, where)

    def layout_of(module: str) -> GptqLayout:
        number = patterns.first(module)
        if number is None:
            return default
        if texts[number].startswith(_DENSE):
            raise CheckpointError(f"{where}: {module!r} is stored packed; dynamic says it is not quantized")
        settings = {**quantization, **(rules[texts[number]] or {})}
        return read_layout(settings, default.version, BITS, f"{where}: dynamic {texts[number][:100]!r}")

    return layout_of


def open_gptq(source: SafetensorsSource, quantization: Mapping[str, object], where: str) -> PackedModules:
    """See packed modules as weights. Raises CheckpointError for what is not read."""
    return open_word_packed(source, gptq_layouts(quantization, where), where)


def with_override(quantization: Mapping[str, object], module: str, scheme: Scheme) -> dict[str, object]:
    """The config of a checkpoint in which `module` now has another scheme; the first rule that fits wins."""
    rule = {"bits": scheme.grid.bits, "group_size": size_of(scheme), "sym": scheme.grid.symmetric}
    pattern = f"+:^{re.escape(module)}$"
    old = quantization.get("dynamic")
    rest = {key: value for key, value in old.items() if key != pattern} if isinstance(old, dict) else {}
    return {**quantization, "dynamic": {pattern: rule, **rest}}
