"""Errors that are an order: rows or columns of the reference in other places."""

import torch
from torch import Tensor

from quantriage.diagnose.lint.catalogue import finding
from quantriage.diagnose.lint.grouping import even_rows
from quantriage.diagnose.lint.pair import Pair, residual_of
from quantriage.records.diagnosis import LintFinding

_SKETCH = 32  # random directions on which rows are compared
_MOST = 16384  # rows or columns compared all with all; a head has more and is left out
_AGREEING = 0.8  # of the rows must find a partner of their own
_WIDEST_HEAD = 512
_LOOKED_AT = 64  # columns that an order is tried on first
_MOVED = 0.02  # of them elsewhere, to be a permutation at all


def transposed(pair: Pair) -> LintFinding | None:
    """A square matrix stored the other way round."""
    if pair.reference.shape[0] != pair.reference.shape[1]:
        return None
    residual = residual_of(pair.reference.to(torch.float32), pair.candidate.to(torch.float32).T)
    if not pair.explained(residual):
        return None
    return finding("transposed", pair.module, f"the transpose differs by only {100 * residual:.1f}%")


def rotary(pair: Pair) -> LintFinding | None:
    """Rows of each head in pairs where the reference has halves, or the other way round."""
    rows = pair.reference.shape[0]
    reference, candidate = (t.to(torch.float32) for t in (pair.reference, pair.candidate))
    if pair.relative < 3 * pair.expected:
        return None
    some = even_rows(reference.shape[1], _LOOKED_AT)  # columns
    for width in head_widths(rows):
        for word, order in (
            ("pairs, the reference in halves", interleaved(rows, width)),
            ("halves, the reference in pairs", interleaved(rows, width).argsort()),
        ):
            if residual_of(reference[:, some][order], candidate[:, some]) > pair.relative / 2:
                continue
            residual = residual_of(reference[order], candidate)
            if pair.explained(residual):
                text = (
                    f"rows of heads of {width} stand in {word}; put in order, the error falls from "
                    f"{100 * pair.relative:.0f}% to {100 * residual:.1f}%"
                )
                return finding("rotary-permutation", pair.module, text)
    return None


def rows_permuted(pair: Pair) -> LintFinding | None:
    """Rows in another order."""
    found = _permutation(pair, rows=True)
    if found is None:
        return None
    return finding("rows-permuted", pair.module, found)


def columns_permuted(pair: Pair) -> LintFinding | None:
    """Columns in another order."""
    found = _permutation(pair, rows=False)
    if found is None:
        return None
    return finding("columns-permuted", pair.module, found)


def head_widths(rows: int) -> list[int]:
    """Even widths of heads that `rows` may consist of; in heads of 2 both orders are one."""
    return [width for width in range(4, min(rows, _WIDEST_HEAD) + 1, 2) if rows % width == 0]


def interleaved(rows: int, width: int) -> Tensor:
    """The order in which rows of heads in halves make heads in pairs, int64 [rows]."""
    index = torch.arange(rows).view(-1, 2, width // 2)
    return index.transpose(1, 2).reshape(-1)


def _permutation(pair: Pair, rows: bool) -> str | None:
    """Match rows (or columns) by their products with random directions; evidence if the order explains it."""
    reference, candidate = (t.to(torch.float32) for t in (pair.reference, pair.candidate))
    if not rows:
        reference, candidate = reference.T, candidate.T
    count = reference.shape[0]
    if count > _MOST or count < 2 or pair.relative < 3 * pair.expected:
        return None
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(reference.shape[1], _SKETCH, generator=generator)
    left, right = (_unit(t @ directions) for t in (reference, candidate))
    source = torch.cat([(chunk @ left.T).argmax(1) for chunk in right.split(1024)])  # candidate i is its row
    moved = source != torch.arange(count)
    distinct = source.unique().numel() / count
    if float(moved.float().mean()) < _MOVED or distinct < _AGREEING:
        return None
    residual = residual_of(reference[source], candidate)
    if not pair.explained(residual):
        return None
    return (
        f"{int(moved.sum())} of {count} {'rows' if rows else 'columns'} stand elsewhere; put in order, "
        f"the error falls from {100 * pair.relative:.0f}% to {100 * residual:.1f}%"
    )


def _unit(rows: Tensor) -> Tensor:
    lengths: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / lengths.clamp(min=1e-30)
