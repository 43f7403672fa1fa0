"""Weights with the statistics of trained ones, quantized soundly or with one known fault."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantriage.diagnose.lint.nearest import expected_error
from quantriage.diagnose.lint.pair import Pair, sums
from quantriage.errors import CheckpointError
from quantriage.numerics.min_max import min_max_qparams
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.rounding import quantize
from quantriage.numerics.schemes import Scheme
from quantriage.numerics.stored_weight import StoredWeight, stored_weight

ROWS, COLUMNS = 96, 128


def weight(seed: int = 0, rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    """Normal weights [rows, columns] whose columns and rows differ in size, with one outlier column."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(rows, columns, generator=generator) * 0.02
    value *= torch.exp(torch.randn(columns, generator=generator) * 0.3)
    value *= torch.exp(torch.randn(rows, 1, generator=generator) * 0.2)
    value[:, 7] *= 8
    return value


def nearest(reference: Tensor, scheme: str = "w4a-g32") -> QuantizedTensor:
    """Plain rounding."""
    chosen = Scheme.parse(scheme)
    return quantize(reference, chosen, min_max_qparams(reference, chosen))


def stored(quantized: QuantizedTensor, layout: str = "pack-quantized") -> StoredWeight:
    """What a reader would say of it."""
    return stored_weight(layout, quantized, quantized.codes.numel())


def pair(reference: Tensor, quantized: QuantizedTensor, candidate: Tensor | None = None) -> Pair:
    """The reference beside the dequantized weight, or beside `candidate`."""
    value = quantized.dequantize() if candidate is None else candidate
    kept = stored(quantized)
    return Pair("m", reference, value, kept, sums(reference, value), expected_error(reference, kept))


def with_scale(quantized: QuantizedTensor, change: Callable[[Tensor], Tensor]) -> QuantizedTensor:
    """Other scales, the same codes."""
    return replace(quantized, scale=change(quantized.scale.clone()))


@dataclass(frozen=True)
class Fake:
    """A WeightSource over a dict: dense tensors, and what is stored for some modules."""

    dense: dict[str, Tensor]
    packed: dict[str, StoredWeight | QuantizedTensor]
    broken: frozenset[str] = frozenset()

    def names(self) -> tuple[str, ...]:
        return (*self.dense, *(f"{module}.weight" for module in self.packed))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.get(name).shape) if name in self.dense else self._packed(name).shape

    def get(self, name: str) -> Tensor:
        if name in self.dense:
            return self.dense[name]
        value = self._packed(name)
        if name.removesuffix(".weight") in self.broken:
            raise CheckpointError(f"{name}: planted")
        assert isinstance(value, QuantizedTensor)
        return value.dequantize()

    def stored(self, module: str) -> StoredWeight | None:
        value = self.packed.get(module)
        return stored(value) if isinstance(value, QuantizedTensor) else value

    def _packed(self, name: str) -> StoredWeight | QuantizedTensor:
        return self.packed[name.removesuffix(".weight")]


MODULES = {
    "self_attn.q_proj": (128, 128),
    "self_attn.k_proj": (64, 128),
    "self_attn.v_proj": (64, 128),
    "self_attn.o_proj": (128, 128),
    "mlp.gate_proj": (96, 128),
    "mlp.up_proj": (96, 128),
    "mlp.down_proj": (128, 96),
}


def reference_model(blocks: int = 4) -> dict[str, Tensor]:
    """A llama of seeded weights by name, without head."""
    tensors = {"model.embed_tokens.weight": weight(999, 200, 128), "model.norm.weight": torch.ones(128)}
    for block in range(blocks):
        base = f"model.layers.{block}"
        for number, norm in enumerate(("input_layernorm", "post_attention_layernorm")):
            generator = torch.Generator().manual_seed(1000 + 2 * block + number)
            tensors[f"{base}.{norm}.weight"] = 1 + 0.2 * torch.randn(128, generator=generator)
        for number, (module, shape) in enumerate(MODULES.items()):
            tensors[f"{base}.{module}.weight"] = weight(10 * block + number, *shape)
    return tensors


def packed_model(tensors: dict[str, Tensor], scheme: str = "w4a-g32") -> Fake:
    """All block matrices rounded, the rest dense."""
    modules = {n.removesuffix(".weight"): t for n, t in tensors.items() if t.ndim == 2 and ".layers." in n}
    dense = {n: t for n, t in tensors.items() if n.removesuffix(".weight") not in modules}
    return Fake(dense, {module: nearest(value, scheme) for module, value in modules.items()})
