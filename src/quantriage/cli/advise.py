"""`quantriage advise`: which way to store and run a model under your constraints."""

from typing import TYPE_CHECKING

from quantriage.cli.command import Command, Outcome
from quantriage.cli.printable import printable
from quantriage.records.advice import Advice
from quantriage.records.run_dir import REPORT, RunDir
from quantriage.stream.progress import Progress
from quantriage.workflows.advise_options import AdviseOptions

if TYPE_CHECKING:
    from rich.table import Table

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


def _table(found: Advice) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(("", "engine", "bits", "weights MB", "cache MB", "quality", "speed")):
        table.add_column(name, justify="right" if 1 < index < 5 else "left", no_wrap=1 < index < 5)
    for one in found.strategies:
        cells = (
            f"{one.rank}. {one.title}",
            one.engine,
            f"{one.bits:.2f}",
            f"{one.weight_bytes / 1e6:.1f}",
            f"{one.cache_bytes / 1e6:.1f}",
            f"{one.quality.basis}: {one.quality.text}",
            f"{one.speed.basis}: {one.speed.text}",
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


COMMAND = Command("advise", AdviseOptions, ("model",), run)
