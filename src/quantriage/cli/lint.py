"""`quantriage lint`: what is structurally wrong with a checkpoint."""

from quantriage.cli.command import UNSOUND, Command, Outcome
from quantriage.cli.printable import printable
from quantriage.records.diagnosis import Lint, LintFinding
from quantriage.stream.progress import Progress
from quantriage.workflows.options import LintOptions

SHOWN = 40  # findings printed; --json and the record have all


def run(options: LintOptions, progress: Progress) -> Outcome:
    """Lint, print every finding with what to do, and fail if one is an error."""
    from quantriage.workflows.lint import lint

    record = lint(options, progress)
    errors = sum(one.severity == "error" for one in record.findings)
    warnings = sum(one.severity == "warning" for one in record.findings)
    lines = [line for one in record.findings[:SHOWN] for line in _lines(one)]
    if len(record.findings) > SHOWN:
        lines.append(f"... and {len(record.findings) - SHOWN} more; --json has all")
    lines += _differences(record)
    lines.append(
        f"{record.layout}: {record.sites} sites, {errors} errors, {warnings} warnings "
        f"in {record.seconds:.1f} s, {record.peak_memory_bytes / 1e6:.0f} MB"
    )
    return Outcome(record=record, lines=tuple(map(printable, lines)), exit_code=UNSOUND if errors else 0)


def _lines(one: LintFinding) -> list[str]:
    where = f"{one.site}: " if one.site else ""
    lines = [f"{one.severity}: {where}{one.check}: {one.evidence}"]
    if one.severity != "info":
        lines.append(
            f"likely cause: {one.cause} To do: {one.action}.{f' See {one.thread}' if one.thread else ''}"
        )
    return lines


def _differences(record: Lint) -> list[str]:
    quiet = [d for d in record.differences if not d.matters]
    return [f"differs: {d.file} {d.key}: {d.candidate} (reference: {d.reference})" for d in quiet]


COMMAND = Command("lint", LintOptions, ("candidate",), run)
