"""The bench's results as a table of kinds by formats, and as three figures."""

from collections.abc import Sequence

from benchmarks.faults.score import Score


def summary(scores: Sequence[Score], alarms: int, healthy: int) -> str:
    """The three figures that the bench is for."""
    count = max(1, len(scores))
    site = sum(s.right_site for s in scores)
    cause = sum(s.right_cause for s in scores)
    return (
        f"{len(scores)} planted faults: right site {site} ({100 * site / count:.1f}%), right cause {cause} "
        f"({100 * cause / count:.1f}%), by lint alone {sum(s.by == 'lint' for s in scores)}; "
        f"false alarms {alarms} of {healthy} healthy checkpoints"
    )


def markdown(scores: Sequence[Score]) -> str:
    """Kinds by formats: "both", "site" or "cause" alone, or what was said instead."""
    layouts = list(dict.fromkeys(s.layout for s in scores))
    by_cell = {(s.kind, s.layout): s for s in scores}
    lines = ["| fault | " + " | ".join(layouts) + " |", "|---" * (len(layouts) + 1) + "|"]
    for kind in dict.fromkeys(s.kind for s in scores):
        cells = [_cell(by_cell.get((kind, layout))) for layout in layouts]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    mark = "" if score.by == "lint" else f" ({score.by})"
    if score.right_site and score.right_cause:
        return f"both{mark}"
    said = score.first or ("error" if score.error else "nothing")
    if score.right_site:
        return f"site, {said}{mark}"
    return f"cause only{mark}" if score.right_cause else f"no: {said}{mark}"
