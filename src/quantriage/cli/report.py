"""`quantriage report`: write the report of a run folder again, from its records."""

from dataclasses import dataclass, field
from pathlib import Path

from quantriage.cli.command import Command, Outcome
from quantriage.cli.printable import printable
from quantriage.records.run_dir import RunDir
from quantriage.stream.progress import Progress


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """`report`: render the records of a run folder to one HTML file that needs no network."""

    run: Path = field(metadata={"help": "run folder with records"})


def run(options: ReportOptions, progress: Progress) -> Outcome:  # noqa: ARG001
    """Render, and say where."""
    from quantriage.report.render import render

    path = render(RunDir.existing(options.run).path)
    return Outcome(record={"report": str(path)}, lines=(printable(f"report: {path}"),))


COMMAND = Command("report", ReportOptions, ("run",), run)
