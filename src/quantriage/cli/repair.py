"""`quantriage repair`: exit code 9 says that a checkpoint was written but is not shown to be better."""

from quantriage.cli.command import NOT_PROVEN, Command, Outcome
from quantriage.cli.printable import printable
from quantriage.records.diagnosis import Repair, RepairedUnit
from quantriage.records.run_dir import REPORT, RunDir
from quantriage.stream.progress import Progress
from quantriage.workflows.options import RepairOptions

SHOWN = 20  # units printed; --json and the record have all


def run(options: RepairOptions, progress: Progress) -> Outcome:
    """Repair, and say what was changed and what it gained."""
    from quantriage.cli.tables import findings, with_interval
    from quantriage.workflows.repair import repair

    record = repair(options, progress)
    lines = [_line(unit) for unit in record.units[:SHOWN]]
    if len(record.units) > SHOWN:
        lines.append(f"... and {len(record.units) - SHOWN} more; --json has all")
    lines += [
        f"KL {with_interval(record.kl_before)} before, {with_interval(record.kl_after)} after: "
        f"{_gain(record)}",
        f"{record.bytes_after - record.bytes_before:+,} bytes of {record.bytes_before:,}; "
        f"{record.tensors_unchanged:,} tensors byte for byte as they were",
        *findings(record.findings),
        f"checkpoint: {record.opens}",
        f"report: {RunDir(options.run_folder).file(REPORT)}",
    ]
    return Outcome(record, tuple(map(printable, lines)), 0 if record.proven else NOT_PROVEN)


def _line(unit: RepairedUnit) -> str:
    how = f"again as {unit.after}" if unit.before == unit.after else f"{unit.before} to {unit.after}"
    return f"{unit.unit}: {how}, {unit.bytes_added:+,} bytes"


def _gain(record: Repair) -> str:
    change = record.difference
    assert change is not None
    words = "proven" if record.proven else "NOT proven to be better"
    return f"{words} (paired difference {change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}])"


COMMAND = Command("repair", RepairOptions, ("reference", "candidate"), run)
