"""The bench's results as a table of kinds by formats, by format, and as three figures."""

from collections.abc import Sequence

from benchmarks.faults.score import Score, Sound
from benchmarks.markdown import table


def page(scores: Sequence[Score], healthy: Sequence[Sound]) -> str:
    """Everything as Markdown."""
    parts = [summary(scores, healthy), format_table(scores), markdown(scores), missed(scores)]
    return "\n\n".join([*parts, alarms(healthy)]) + "\n"


def summary(scores: Sequence[Score], healthy: Sequence[Sound]) -> str:
    """The three figures that the bench is for."""
    site, cause = (sum(getattr(s, name) for s in scores) for name in ("right_site", "right_cause"))
    count = max(1, len(scores))
    return (
        f"{len(scores)} planted faults: right site {site} ({100 * site / count:.1f}%), right cause {cause} "
        f"({100 * cause / count:.1f}%), by lint alone {sum(s.by == 'lint' for s in scores)}; "
        f"false alarms {sum(s.alarm for s in healthy)} of {len(healthy)} healthy checkpoints, "
        f"{sum(s.advice for s in healthy)} told that they could be rounded better"
    )


def by_format(scores: Sequence[Score]) -> dict[str, dict[str, int]]:
    """Counts for each format."""
    return {
        layout: {
            "faults": len(of := [s for s in scores if s.layout == layout]),
            "right_site": sum(s.right_site for s in of),
            "right_cause": sum(s.right_cause for s in of),
        }
        for layout in dict.fromkeys(s.layout for s in scores)
    }


def format_table(scores: Sequence[Score]) -> str:
    """The counts by format as a table."""
    rows = [
        f"| {layout} | {n['faults']} | {n['right_site']} | {n['right_cause']} |"
        for layout, n in by_format(scores).items()
    ]
    return "\n".join(["| format | faults | right site | right cause |", "|---|---|---|---|", *rows])


def missed(scores: Sequence[Score]) -> str:
    """What was not right, and what was said instead."""
    lines = [
        f"- {s.kind}, {s.layout}: {s.error or s.first or 'nothing said'} {', '.join(s.first_units)}".rstrip()
        for s in scores
        if not (s.right_site and s.right_cause)
    ]
    return "\n".join(["Missed:", "", *(lines or ["nothing"])])


def alarms(healthy: Sequence[Sound]) -> str:
    """False alarms, by name."""
    lines = [f"- {s.label}: {'; '.join(s.said)}" for s in healthy if s.alarm]
    return "\n".join(["False alarms:", "", *(lines or ["none"])])


def markdown(scores: Sequence[Score]) -> str:
    """Kinds by formats: "both", "site" or "cause" alone, or what was said instead."""
    layouts = list(dict.fromkeys(s.layout for s in scores))
    by_cell = {(s.kind, s.layout): s for s in scores}
    kinds = dict.fromkeys(s.kind for s in scores)
    rows = [[kind, *(_cell(by_cell.get((kind, layout))) for layout in layouts)] for kind in kinds]
    return table(["fault", *layouts], rows)


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
