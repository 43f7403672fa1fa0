"""Weights whose rows and columns are multiplied as they are read: the same model in another scaling.

Tools that rescale channels divide one tensor by factors and multiply another by them. Seen through such a
view a candidate stands in the reference's scaling, or the reference in the one it is to be rounded in, and
nobody above needs to know. One tensor at a time is multiplied; a rescaled copy of the model never exists.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from quantriage.formats.weight_source import WeightSource
from quantriage.numerics.stored_weight import StoredWeight


@dataclass(frozen=True)
class Factors:
    """What a stored tensor is multiplied by: rows [out] and columns [in] of a matrix, rows of a vector.

    offset: what the module adds to a vector before it multiplies by it (1 in Gemma's norms).
    """

    rows: Tensor | None = None
    columns: Tensor | None = None
    offset: float = 0.0

    def of(self, tensor: Tensor, transposed: bool = False) -> Tensor:
        """The product, float32. transposed: the tensor is stored [in, out]."""
        result = tensor.to(torch.float32)
        rows, columns = (self.columns, self.rows) if transposed else (self.rows, self.columns)
        if rows is not None and self.offset:
            result = (result + self.offset) * rows - self.offset
        elif rows is not None:
            result = result * (rows if result.ndim == 1 else rows.unsqueeze(1))
        return result if columns is None else result * columns

    def taken_back(self) -> "Factors":
        """The inverse factors."""
        rows, columns = (None if f is None else f.reciprocal() for f in (self.rows, self.columns))
        return Factors(rows, columns, self.offset)


@dataclass(frozen=True)
class ScaledWeights:
    """A WeightView: `inner` with factors applied to some tensors. `stored` is what is on disk.

    transposed: tensors stored [in, out].
    """

    inner: WeightSource
    factors: Mapping[str, Factors]
    transposed: frozenset[str]

    def names(self) -> tuple[str, ...]:
        """The inner names."""
        return self.inner.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """The inner shape."""
        return self.inner.shape(name)

    def get(self, name: str) -> Tensor:
        """The tensor, in float32 where it is rescaled."""
        tensor = self.inner.get(name)
        return self.factors[name].of(tensor, name in self.transposed) if name in self.factors else tensor

    def stored(self, module: str) -> StoredWeight | None:
        """What is stored for a module, in the scaling it is stored in."""
        return self.inner.stored(module)

    def changed(self) -> Set[str]:
        """What is rescaled."""
        return self.factors.keys()

    def in_own_scaling(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of this view's scaling as the inner source would hold it: what a repair has to store."""
        if name not in self.factors:
            return tensor
        return self.factors[name].taken_back().of(tensor, name in self.transposed)
