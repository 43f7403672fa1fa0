"""`quantriage diagnose`: what is wrong with a quantized checkpoint, where, and what it costs."""

from quantriage.cli.command import UNSOUND, Command, Outcome
from quantriage.cli.printable import printable
from quantriage.records.diagnosis import Attribution, CandidateDiagnosis, Cause
from quantriage.records.run_dir import REPORT, RunDir
from quantriage.stream.progress import Progress
from quantriage.workflows.options import DiagnoseOptions

SOUND = ("healthy", "at the limit of its bits")
SHOWN = 20  # causes printed; --json and the record have all


def run(options: DiagnoseOptions, progress: Progress) -> Outcome:
    """Diagnose, print verdict and causes, and fail if something can be put right."""
    from quantriage.workflows.diagnose import diagnose

    found = diagnose(options, progress)
    lines = _lines(found.conclusion)
    if found.attribution is not None:
        lines.append(_effort(found.attribution))
    if found.split is not None:
        lines.append(f"{found.split.carrier}: {found.split.sentence}")
    if options.run is not None:
        lines.append(f"report: {RunDir(options.run).file(REPORT)}")
    return Outcome(
        record=found.conclusion,
        lines=tuple(map(printable, lines)),
        exit_code=0 if found.conclusion.verdict in SOUND else UNSOUND,
    )


def _lines(found: CandidateDiagnosis) -> list[str]:
    lines = [f"{found.verdict}: {found.sentence}"]
    for number, cause in enumerate(found.causes[:SHOWN], start=1):
        lines += _cause(number, cause)
    if len(found.causes) > SHOWN:
        lines.append(f"... and {len(found.causes) - SHOWN} more causes; --json has all")
    return lines


def _cause(number: int, cause: Cause) -> list[str]:
    kl = f" (KL {cause.kl:.4g})" if cause.kl is not None else ""
    return [f"{number}. {cause.code}{kl}: {cause.sentence}", f"   to do: {cause.action}"]


def _effort(found: Attribution) -> str:
    cut = "; the budget ended the measurement early" if found.truncated else ""
    return (
        f"{len(found.units)} units attributed with {found.forwards:.1f} forward passes in "
        f"{found.seconds:.1f} s (one by one: {found.forwards_one_by_one:.0f}){cut}"
    )


COMMAND = Command("diagnose", DiagnoseOptions, ("reference", "candidate"), run)
