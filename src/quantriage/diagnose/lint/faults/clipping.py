"""Large weights cut off, small ones as they should be."""

from quantriage.diagnose.lint.catalogue import finding
from quantriage.diagnose.lint.pair import Pair
from quantriage.records.diagnosis import LintFinding

_REACH = 0.75  # the candidate's largest weight of a row over the reference's, below which rows were cut
_CARRIED = 0.6  # of the error lies on the weights beyond that reach
_INNER = 2.0  # times the expected error at most for those within it


def clipped(pair: Pair) -> LintFinding | None:
    """Weights beyond what the candidate reaches carry the error."""
    groups = pair.groups
    _, reference, candidate = pair.some_rows()
    if groups is not None and pair.stored is not None and pair.stored.column_group is None:
        width = reference.shape[1] // groups.scale.shape[1]
        reference, candidate = (t.reshape(-1, width) for t in (reference, candidate))
    reach, wanted = candidate.abs().amax(1), reference.abs().amax(1)  # of each group
    usable = wanted > 0
    if not bool(usable.any()):
        return None
    ratio = float((reach[usable] / wanted[usable]).median())
    error = (candidate - reference).square()
    beyond = reference.abs() > reach.unsqueeze(1)
    total = float(error.sum())
    carried = float(error[beyond].sum()) / total if total > 0 else 0.0
    norm = float(reference.norm())
    inner = float(error[~beyond].sum()) ** 0.5 / norm if norm > 0 else 0.0
    if ratio > _REACH or carried < _CARRIED or inner > _INNER * pair.expected:
        return None
    text = (
        f"groups reach {100 * ratio:.0f}% of the reference's largest weight; the "
        f"{100 * float(beyond.float().mean()):.0f}% of the weights beyond carry {100 * carried:.0f}% "
        "of the error"
    )
    return finding("clipped", pair.module, text)
