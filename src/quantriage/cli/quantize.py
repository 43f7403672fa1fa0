"""`quantriage quantize`: carry out a plan or one scheme."""

from quantriage.cli.command import Command, Outcome
from quantriage.cli.printable import printable
from quantriage.records.run_dir import REPORT, RunDir
from quantriage.stream.progress import Progress
from quantriage.workflows.options import QuantizeOptions


def run(options: QuantizeOptions, progress: Progress) -> Outcome:
    """Quantize, and say where the checkpoint is."""
    from quantriage.cli.tables import findings
    from quantriage.workflows.quantize import quantize

    summary = quantize(options, progress)
    return Outcome(
        record=summary,
        lines=(
            printable(f"{summary.title} for {summary.target}"),
            *findings(summary.findings),
            printable(f"checkpoint: {options.out}"),
            printable(f"report: {RunDir(options.run_folder).file(REPORT)}"),
        ),
    )


COMMAND = Command("quantize", QuantizeOptions, ("model",), run)
