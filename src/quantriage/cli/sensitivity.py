"""`quantriage sensitivity`: which layers hurt, in which scheme."""

from quantriage.cli.command import Command, Outcome
from quantriage.cli.printable import printable
from quantriage.records.run_dir import DIAGNOSIS, REPORT, RunDir
from quantriage.records.types import Diagnosis
from quantriage.stream.progress import Progress
from quantriage.workflows.options import SensitivityOptions

SHOWN = 8  # sites printed; the report has all


def run(options: SensitivityOptions, progress: Progress) -> Outcome:
    """Score, and name the most sensitive sites."""
    from quantriage.cli.tables import findings
    from quantriage.workflows.sensitivity import sensitivity

    summary = sensitivity(options, progress)
    folder = RunDir(options.run)
    sites = sorted(folder.read_many(DIAGNOSIS, Diagnosis), key=lambda site: site.rank)
    lines = [f"{s.rank:>3}  {100 * s.share:5.1f}%  {s.site}: {s.recommendation}" for s in sites[:SHOWN]]
    return Outcome(
        record=summary,
        lines=(
            f"{len(sites)} sites scored; the most sensitive, with their share of the predicted KL:",
            *(_indented(line) for line in lines),
            *findings(summary.findings),
            printable(f"report: {folder.file(REPORT)}"),
        ),
    )


def _indented(line: str) -> str:
    width = len(line) - len(line.lstrip())
    return " " * width + printable(line)


COMMAND = Command("sensitivity", SensitivityOptions, ("model",), run)
