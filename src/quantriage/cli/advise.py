"""`quantriage advise`: which way to store and run a model under your constraints."""

from rich.table import Table

from quantriage.cli.command import Command, Outcome
from quantriage.cli.printable import printable
from quantriage.cli.tables import plain_table
from quantriage.records.advice import Advice
from quantriage.records.run_dir import REPORT, RunDir
from quantriage.stream.progress import Progress
from quantriage.workflows.advise_options import AdviseOptions

_COMMANDS_OF = 3  # strategies whose commands are printed; the record has all


def run(options: AdviseOptions, progress: Progress) -> Outcome:
    """Advise; print the answer, the table, the commands, and why the rest lost."""
    from quantriage.workflows.advise import advise

    found = advise(options, progress)
    said = [
        line
        for one in found.strategies[:_COMMANDS_OF]
        for line in (f"{one.rank}. {one.title}, {one.engine}: {one.why}", *(f"   {c}" for c in one.commands))
    ]
    said += [f"not: {one.title}, {one.engine}: {'; '.join(one.reasons)}" for one in found.rejected]
    said += [f"note: {text}" for text in found.notes]
    if options.run is not None:
        said.append(f"report: {RunDir(options.run).file(REPORT)}")
    return Outcome(record=found, lines=(printable(found.sentence), _table(found), *map(printable, said)))


_COLUMNS = ("", "engine", "bits", "weights MB", "cache MB", "quality", "speed")


def _table(found: Advice) -> Table:
    rows = (
        (
            f"{one.rank}. {one.title}",
            one.engine,
            f"{one.bits:.2f}",
            f"{one.weight_bytes / 1e6:.1f}",
            f"{one.cache_bytes / 1e6:.1f}",
            f"{one.quality.basis}: {one.quality.text}",
            f"{one.speed.basis}: {one.speed.text}",
        )
        for one in found.strategies
    )
    return plain_table(_COLUMNS, rows, words=(0, 1, 5, 6))


COMMAND = Command("advise", AdviseOptions, ("model",), run)
