"""Scales that belong to other columns: shifted by whole groups, or no longer following g_idx."""

import torch

from quantriage.diagnose.lint.catalogue import finding
from quantriage.diagnose.lint.pair import Pair, residual_of
from quantriage.records.diagnosis import LintFinding

_MOST_GROUPS = 512  # tried one by one on sampled rows
_KEPT = 0.95  # part of a group's columns that stay where its scales are right


def groups_shifted(pair: Pair) -> LintFinding | None:
    """Scales and zero points one or a few groups too far along, in each row or over the ends of rows."""
    groups = pair.groups
    if groups is None or groups.scale.shape[1] < 2:
        return None
    rows, reference, _ = pair.some_rows(64)
    count = groups.scale.shape[1]
    for shift in (1, -1, 2, -2):
        if abs(shift) >= count:
            continue
        within, across = groups.values(rows, shift), groups.moved(shift).values(rows)
        residual = min(residual_of(reference, within), residual_of(reference, across))
        if pair.explained(residual):
            text = (
                f"with scales taken from {abs(shift)} group{'s' if abs(shift) > 1 else ''} "
                f"{'further on' if shift > 0 else 'back'} the error falls from "
                f"{100 * pair.relative:.0f}% to {100 * residual:.1f}%"
            )
            return finding("groups-shifted", pair.module, text)
    return None


def act_order_lost(pair: Pair) -> LintFinding | None:
    """Each column fits the scales of some other group: the index of groups is gone."""
    groups = pair.groups
    if groups is None or not 2 <= groups.scale.shape[1] <= _MOST_GROUPS:
        return None
    rows, reference, _ = pair.some_rows(64)
    columns = reference.shape[1]
    least = torch.full((columns,), float("inf"))
    best = torch.zeros(columns, dtype=torch.int64)
    for group in range(groups.scale.shape[1]):
        index = torch.full((columns,), group)
        error = (groups.values(rows, column_group=index) - reference).square().sum(0)
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, group, best)
    power = float(reference.square().sum())
    residual = (float(least.sum()) / power) ** 0.5 if power > 0 else 0.0
    elsewhere = best != groups.column_group
    moved = int(elsewhere.sum())
    if not pair.explained(residual) or 10 * moved < columns or _by_groups(elsewhere, groups.column_group):
        return None
    text = (
        f"{moved} of {columns} columns fit the scales of another group; with those the error falls from "
        f"{100 * pair.relative:.0f}% to {100 * residual:.1f}%"
    )
    return finding("act-order-lost", pair.module, text)


def _by_groups(elsewhere: torch.Tensor, column_group: torch.Tensor) -> bool:
    """Whether some group keeps its columns: a lost index scatters those of all, scales go wrong by groups."""
    sizes = column_group.bincount()
    staying = torch.zeros_like(sizes).scatter_add_(0, column_group, (~elsewhere).to(torch.int64))
    return bool((staying[sizes > 0] >= _KEPT * sizes[sizes > 0]).any())
