"""A candidate whose weights were rescaled on purpose (AWQ, SmoothQuant), seen in the reference's scaling.

Such tools divide a norm by factors and multiply the columns behind it by them, or rows by factors and the
columns that read them by the inverse. The model computes the same, but no unit of it fits into the reference:
swapped in alone, each ruins it. Here the factors found are taken back on both sides, so that what is left of
a difference is rounding. Whether the function stayed the same is not believed but tested, block by block on
noise; a block where it did not is left as it is stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quantriage.diagnose.hybrid import Pair, Unit, pair_of
from quantriage.diagnose.lint.rescaling import undoes
from quantriage.errors import CheckpointError
from quantriage.formats.scaled_weights import Factors, ScaledWeights
from quantriage.model.causal import CausalModel

CHANGED = 0.02
"""Relative change of a norm, or spread of a matrix's log factors, from which it counts as rescaled."""
SAME = 1e-3
"""Relative change of a block's output on noise that its own rounding in float32 explains."""


def align(model: CausalModel, pair: Pair, units: Sequence[Unit]) -> ScaledWeights | None:
    """The candidate in the reference's scaling; None if it is not rescaled.

    Reads the norms, and the matrices of blocks where one of them changed: a tool that rescales changes norms
    first of all. Memory: two matrices, and two blocks for the test.
    """
    transposed = frozenset(u.tensors[0] for u in units if u.site is not None and u.site.transposed)
    found: dict[str, Factors] = {}
    head_width = getattr(model.config, "head_dim", None) or model.hidden_size // getattr(
        model.config, "num_attention_heads", 1
    )
    for index in range(model.block_count):
        block = _Block(pair, [u for u in units if u.block == index], int(head_width))
        block.take_back_norms()
        if block.factors:
            block.take_back_pairs()
            own = ScaledWeights(pair.candidate, block.factors, transposed)
            if _same_function(model, pair, own, units, index):
                found |= block.factors
    return ScaledWeights(pair.candidate, found, transposed) if found else None


@dataclass
class _Block:
    """The units of one block, and the factors found so far that bring the candidate's to the reference's."""

    pair: Pair
    units: Sequence[Unit]
    head_width: int
    factors: dict[str, Factors] = field(default_factory=dict)

    def take_back_norms(self) -> None:
        """A norm's factors, undone in the columns of every matrix of the block that reads it."""
        matrices = [u for u in self.units if len(self.pair.reference.shape(u.tensors[0])) == 2]
        for norm in self.units:
            ratio = self._norm_ratio(norm)
            if ratio is None:
                continue
            behind = [
                u for u in matrices if self._width(u) == len(ratio) and undoes(ratio, self._columns(u), None)
            ]
            if behind:
                for name in norm.tensors:
                    self.factors[name] = Factors(rows=ratio.reciprocal())
                for unit in behind:
                    self.factors[unit.tensors[0]] = Factors(columns=ratio)

    def take_back_pairs(self) -> None:
        """Rows of one site, undone in the columns of another one of the block that reads them."""
        sites = [u for u in self.units if u.site is not None and u.site.expert is None]
        rows = {u.name: factors for u in sites if _spread(factors := self._rows(u)) > CHANGED}
        for reader in sites:
            before = self.factors.get(reader.tensors[0])
            if not rows or (before is not None and before.columns is not None):
                continue
            columns = self._columns(reader)
            if _spread(columns) <= CHANGED:
                continue
            for writer in sites:
                if writer.name in rows and undoes(rows[writer.name], columns, self.head_width):
                    self._pair_up(writer, reader, rows.pop(writer.name))

    def _pair_up(self, writer: Unit, reader: Unit, rows: Tensor) -> None:
        for name in writer.tensors:
            self.factors[name] = self.factors.get(name, Factors()).and_rows(rows.reciprocal())
        width = self._width(reader)
        if width != len(rows):  # a key-value head serves several query heads
            repeats = width // len(rows)
            rows = rows.view(-1, 1, self.head_width).expand(-1, repeats, -1).reshape(-1)
        self.factors[reader.tensors[0]] = Factors(columns=rows)

    def _norm_ratio(self, unit: Unit) -> Tensor | None:
        """Candidate over reference of a norm that changed; None for anything else."""
        name = unit.tensors[0]
        if unit.site is not None or len(self.pair.reference.shape(name)) != 1:
            return None
        ours, theirs = (self.pair.read(name, side).to(torch.float32) for side in (False, True))
        if not bool((ours != 0).all() and torch.isfinite(theirs).all()):
            return None
        ratio = theirs / ours
        return ratio if bool((ratio > 0).all()) and _spread(ratio) > CHANGED else None

    def _matrices(self, unit: Unit) -> tuple[Tensor, Tensor]:
        """Reference's and candidate's [out, in], the candidate's with the factors found so far."""
        name = unit.tensors[0]
        flip = unit.site is not None and unit.site.transposed
        ours, theirs = (self.pair.read(name, side).to(torch.float32) for side in (False, True))
        ours, theirs = (ours.T, theirs.T) if flip else (ours, theirs)
        return ours, self.factors[name].of(theirs) if name in self.factors else theirs

    def _columns(self, unit: Unit) -> Tensor:
        ours, theirs = self._matrices(unit)
        return _ratio((ours * theirs).sum(dim=0), ours.square().sum(dim=0))

    def _rows(self, unit: Unit) -> Tensor:
        ours, theirs = self._matrices(unit)
        return _ratio((ours * theirs).sum(dim=1), ours.square().sum(dim=1))

    def _width(self, unit: Unit) -> int:
        shape = self.pair.reference.shape(unit.tensors[0])
        return shape[0] if unit.site is not None and unit.site.transposed else shape[1]


def _same_function(
    model: CausalModel, pair: Pair, aligned: ScaledWeights, units: Sequence[Unit], index: int
) -> bool:
    """Whether a block of the candidate gives the same on noise in its own and in the reference's scaling."""
    inside = [u for u in units if u.block == index]
    hidden, calls = model.start_from_noise(16)
    results = []
    for source in (pair.candidate, aligned):
        hybrid = model.with_weights(pair_of(model, source).taking(inside))
        try:
            block = hybrid.load_block(index)
        except CheckpointError:  # values that are not finite
            return False
        with torch.no_grad():
            results.append(model.run_block(block, hidden, calls[index]) - hidden)
    before, after = results
    return float((after - before).norm()) <= SAME * float(before.norm())


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    found = torch.where(below > 0, above / below, 1.0)
    return torch.where(torch.isfinite(found), found, 1.0)


def _spread(factors: Tensor) -> float:
    """Standard deviation of the logarithms; 0 where a factor is not positive, which no tool makes."""
    if factors.numel() < 2 or not bool((factors > 0).all()):
        return 0.0
    return float(factors.log().std())
