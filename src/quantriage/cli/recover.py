"""`quantriage recover`: the main job. Exit code 9 says that a checkpoint was written but not proven."""

from pathlib import Path

from quantriage.cli.command import NOT_PROVEN, Command, Outcome
from quantriage.cli.printable import printable
from quantriage.records.run_dir import PROOF, REPORT, RunDir
from quantriage.records.types import Proof, RunSummary
from quantriage.stream.progress import Progress
from quantriage.workflows.options import RecoverOptions


def run(options: RecoverOptions, progress: Progress) -> Outcome:
    """Recover, and say what came of it."""
    from quantriage.workflows.recover import recover

    summary = recover(options, progress)
    return outcome(summary, options.run_folder, options.out)


def outcome(summary: RunSummary, run_folder: Path, out: Path) -> Outcome:
    """The verdict, the table of evaluations, and where things lie."""
    from quantriage.cli.tables import evaluations, findings

    folder = RunDir(run_folder)
    sentence = summary.verdict.sentence if summary.verdict else "no verdict was reached"
    table = (evaluations(folder.read(PROOF, Proof).results),) if folder.has(PROOF) else ()
    proven = summary.verdict is not None and summary.verdict.proven
    return Outcome(
        record=summary,
        lines=(
            printable(sentence),
            *table,
            *findings(summary.findings),
            printable(f"checkpoint: {out}"),
            printable(f"report: {folder.file(REPORT)}"),
        ),
        exit_code=0 if proven else NOT_PROVEN,
    )


COMMAND = Command("recover", RecoverOptions, ("model",), run)
