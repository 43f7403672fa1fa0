"""One weight of the candidate beside the reference's, with the sums that all comparisons start from."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from quantriage.diagnose.lint.grouping import Groups, even_rows, groups_of
from quantriage.numerics.stored_weight import StoredWeight

_CHUNK = 1 << 20  # weights worked on at once; keeps temporaries small
EXPLAINED_PART = 0.6  # an explanation removes at least 1 - 0.6 of the error ...
EXPLAINED_TIMES = 2.0  # ... and leaves at most twice what rounding costs
_LEAST_ERROR = 0.03  # residuals below 3% count as explained whatever the scheme


@dataclass(frozen=True)
class Sums:
    """Sums over a weight [out, in], float64: squares of the difference and both sides, products."""

    row_error: Tensor  # [out]
    row_power: Tensor
    row_candidate: Tensor
    row_product: Tensor
    column_error: Tensor  # [in]
    column_power: Tensor
    column_candidate: Tensor
    column_product: Tensor

    @property
    def relative(self) -> float:
        """Norm of the difference over the reference's; infinite for a reference of zeros that is not met."""
        error, power = float(self.row_error.sum()), float(self.row_power.sum())
        if power == 0:
            return 0.0 if error == 0 else float("inf")
        return float((error / power) ** 0.5)

    @property
    def cosine(self) -> float:
        """Of the two weights taken as vectors."""
        norm = float((self.row_power.sum() * self.row_candidate.sum()) ** 0.5)
        return float(self.row_product.sum()) / norm if norm > 0 else 0.0


def sums(reference: Tensor, candidate: Tensor) -> Sums:
    """Both [out, in], any float type. Memory: a few chunks."""
    rows, columns = reference.shape
    by_row = torch.zeros(4, rows, dtype=torch.float64)
    by_column = torch.zeros(4, columns, dtype=torch.float64)
    step = max(1, _CHUNK // max(1, columns))
    for start in range(0, rows, step):
        left = reference[start : start + step].to(torch.float32)
        right = candidate[start : start + step].to(torch.float32)
        difference = right - left
        for index, (a, b) in enumerate(
            ((difference, difference), (left, left), (right, right), (left, right))
        ):
            product = a * b
            by_row[index, start : start + step] = product.sum(1)
            by_column[index] += product.sum(0)
    return Sums(*by_row, *by_column)


@dataclass(frozen=True)
class Pair:
    """What a fault check is given.

    reference, candidate: [out, in], float types; candidate as its format's reader dequantizes it.
    expected: relative error of plain rounding in the candidate's scheme.
    """

    module: str
    reference: Tensor
    candidate: Tensor
    stored: StoredWeight | None
    sums: Sums
    expected: float

    @property
    def relative(self) -> float:
        """The candidate's error over the reference's norm."""
        return self.sums.relative

    def explained(self, residual: float) -> bool:
        """Whether an error that shrinks to `residual` is explained."""
        enough = max(EXPLAINED_TIMES * self.expected, _LEAST_ERROR)
        return residual < EXPLAINED_PART * self.relative and residual <= enough

    @cached_property
    def groups(self) -> Groups | None:
        """The stored groups, if they make the candidate's values: else checks on them would mislead."""
        groups = None if self.stored is None else groups_of(self.stored)
        if groups is None:
            return None
        rows = even_rows(self.reference.shape[0], 8)
        values, wanted = groups.values(rows), self.candidate[rows].to(torch.float32)
        return groups if torch.allclose(values, wanted, rtol=1e-2, atol=1e-6) else None

    def some_rows(self, wanted: int = 256) -> tuple[Tensor, Tensor, Tensor]:
        """Indices, reference and candidate of evenly spread rows, float32."""
        rows = even_rows(self.reference.shape[0], wanted)
        return rows, self.reference[rows].to(torch.float32), self.candidate[rows].to(torch.float32)


def turned(value: Tensor, stored: StoredWeight) -> bool:
    """Whether value [in, out] lies the other way round than what is stored (Conv1D in a GGUF)."""
    rows, columns = stored.shape
    if tuple(value.shape) != (columns, rows):
        return False
    groups = groups_of(stored)
    if rows != columns or groups is None:
        return rows != columns
    some = even_rows(rows, 4)
    made = groups.values(some)
    straight, across = value[some].to(torch.float32), value[:, some].T.to(torch.float32)
    return float((made - across).norm()) < float((made - straight).norm())


def residual_of(reference: Tensor, candidate: Tensor) -> float:
    """Norm of the difference over the reference's norm."""
    norm = float(reference.norm())
    return float((candidate - reference).norm()) / norm if norm > 0 else 0.0
