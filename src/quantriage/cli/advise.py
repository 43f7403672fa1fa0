"""`quantriage advise`: which way to store and run a model under your constraints."""

from rich.table import Table

from quantriage.cli.command import Command, Outcome
from quantriage.cli.printable import printable
from quantriage.cli.tables import plain_table
from quantriage.records.advice import ANY, Advice, Strategy
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
        for line in (f"{one.rank}. {one.title}, {one.engine}: {one.why}", *_known(one), *one.commands)
    ]
    engine = found.constraints.engine
    here = [one for one in found.rejected if engine in (ANY, one.engine)]
    said += [f"not: {one.title}, {one.engine}: {'; '.join(one.reasons)}" for one in here]
    if len(here) < len(found.rejected):
        said.append(f"not: {len(found.rejected) - len(here)} ways that {engine} does not run (in the record)")
    said += [f"note: {text}" for text in found.notes]
    if options.run is not None:
        said.append(f"report: {RunDir(options.run).file(REPORT)}")
    return Outcome(record=found, lines=(printable(found.sentence), _table(found), *map(printable, said)))


def _known(one: Strategy) -> tuple[str, ...]:
    return tuple(
        f"{what} {f.basis}: {f.text}" for what, f in (("quality", one.quality), ("speed", one.speed))
    )


_COLUMNS = ("", "engine", "bits", "weights MB", "cache MB", "quality", "speed")


def _table(found: Advice) -> Table:
    rows = (
        (
            f"{one.rank}. {one.title}",
            one.engine,
            f"{one.bits:.2f}",
            f"{one.weight_bytes / 1e6:.1f}",
            f"{one.cache_bytes / 1e6:.1f}",
            one.quality.basis,
            one.speed.basis,
        )
        for one in found.strategies
    )
    return plain_table(_COLUMNS, rows, words=(0, 1, 5, 6))


COMMAND = Command("advise", AdviseOptions, ("model",), run)
