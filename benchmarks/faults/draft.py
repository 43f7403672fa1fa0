"""A checkpoint in the making: where a fault is planted, before it is written in one of the formats.

Three moments matter. Some faults sit in the weights before they are rounded (a transposed matrix), some in
codes and scales (a scale that is NaN), some in the files (a tensor that is missing). A draft is all three,
so that one planting function serves every format that can hold its fault.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.faults.block_weights import Rounded
from quantriage.diagnose.fisher import nearest
from quantriage.numerics.schemes import Scheme

Rounder = Callable[[Tensor, Scheme], Rounded]
"""Plain rounding of a weight as a format stores it; block formats take the number of bits alone."""
CARRIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


@dataclass
class Draft:
    """Everything of a candidate. weights: float32 by tensor name, before rounding.

    schemes: of the modules that are to be rounded. rounded: their weights once they are. column_group: the
    group of each column, for modules whose groups are not runs. after: edits of the files once written.
    """

    config: dict[str, object]
    weights: dict[str, Tensor]
    files: dict[str, bytes]
    schemes: dict[str, Scheme] = field(default_factory=dict)
    rounded: dict[str, Rounded] = field(default_factory=dict)
    column_group: dict[str, Tensor] = field(default_factory=dict)
    after: list[Callable[[Path], None]] = field(default_factory=list)
    rounder: Rounder = nearest

    def weight(self, module: str) -> Tensor:
        """The weight of a module, [out, in]."""
        return self.weights[f"{module}.weight"]

    def set_weight(self, module: str, value: Tensor) -> None:
        """Another weight for a module."""
        self.weights[f"{module}.weight"] = value.contiguous()

    def round_all(self) -> None:
        """Plain rounding of every module that has a scheme and was not rounded otherwise."""
        for module, scheme in self.schemes.items():
            if module not in self.rounded:
                self.rounded[module] = self.rounder(self.weight(module), scheme)


def draft_of(reference: Path, scheme: Scheme | None, rounder: Rounder = nearest) -> Draft:
    """A healthy draft: every matrix of the blocks in `scheme`, or nothing rounded."""
    weights = {name: tensor.float() for name, tensor in load_file(reference / "model.safetensors").items()}
    files = {name: (reference / name).read_bytes() for name in CARRIED if (reference / name).is_file()}
    draft = Draft(json.loads((reference / "config.json").read_text()), weights, files, rounder=rounder)
    if scheme is not None:
        draft.schemes = dict.fromkeys(matrices(weights), scheme)
    return draft


def matrices(weights: dict[str, Tensor]) -> list[str]:
    """Modules of the blocks with a matrix to round; routers stay dense."""
    return [
        name.removesuffix(".weight")
        for name, tensor in weights.items()
        if ".layers." in name and tensor.ndim == 2 and not name.endswith("gate.weight")
    ]


def generator(seed: int) -> torch.Generator:
    """Seeded randomness for a fault."""
    return torch.Generator().manual_seed(seed)
