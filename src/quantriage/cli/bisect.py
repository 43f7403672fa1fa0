"""`quantriage bisect`: which layers of a candidate make it worse."""

from quantriage.cli.command import Command, Outcome
from quantriage.cli.printable import printable
from quantriage.records.diagnosis import Bisection
from quantriage.records.run_dir import REPORT, RunDir
from quantriage.stream.progress import Progress
from quantriage.workflows.options import BisectOptions


def run(options: BisectOptions, progress: Progress) -> Outcome:
    """Bisect, and name the culprits."""
    from quantriage.workflows.bisect import bisect

    found = bisect(options, progress)
    lines = [*_sentences(found), f"report: {RunDir(options.run).file(REPORT)}"]
    return Outcome(record=found, lines=tuple(map(printable, lines)))


def _sentences(found: Bisection) -> list[str]:
    asked = f"{found.evaluations} evaluations, one by one would take {found.one_by_one}"
    if not found.culprits:
        return [f"not bad by the criterion ({found.criterion}): {_figure(found.value_without)}; {asked}"]
    return [
        f"{len(found.culprits)} of {found.one_by_one} units that differ are the cause ({asked}):",
        *(f"- {unit}" for unit in found.culprits),
        f"criterion: {found.criterion}",
        f"all from the candidate {_figure(found.value_all)}, only these {_figure(found.value_culprits)}, "
        f"all but these {_figure(found.value_without)}",
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


COMMAND = Command("bisect", BisectOptions, ("reference", "candidate"), run)
