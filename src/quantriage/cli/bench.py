"""`quantriage bench`: how fast the quantized model is against the unquantized one, and why."""

from typing import TYPE_CHECKING

from quantriage.cli.command import Command, Outcome
from quantriage.cli.printable import printable
from quantriage.records.bench import Bench
from quantriage.records.run_dir import REPORT, RunDir
from quantriage.records.types import Interval
from quantriage.stream.progress import Progress
from quantriage.workflows.bench_options import BenchOptions

if TYPE_CHECKING:
    from rich.table import Table


def run(options: BenchOptions, progress: Progress) -> Outcome:
    """Measure, print the table, what is slower and why, and under which conditions."""
    from quantriage.workflows.bench import bench

    found = bench(options, progress)
    said = []
    for one in found.comparisons:
        said.append(one.sentence)
        said += [f"  {'' if r.measured else '(inferred) '}{r.code}: {r.text}" for r in one.reasons]
    said += [f"not run: {f.checkpoint} in {f.engine}: {f.error}" for f in found.failures]
    said += [f"conditions: {text}" for text in found.conditions]
    if options.run is not None:
        said.append(f"report: {RunDir(options.run).file(REPORT)}")
    return Outcome(record=found, lines=(_table(found), *map(printable, said), printable(found.sentence)))


def _table(found: Bench) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(("", "prefill tok/s", "decode tok/s", "first token, s", "peak MB")):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for one in found.entries:
        cells = (
            f"{one.label} ({one.layout}, {one.dtype})",
            _interval(one.prefill),
            _interval(one.decode),
            _interval(one.first_token),
            f"{one.peak_memory / 1e6:.0f}",
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _interval(found: Interval) -> str:
    return f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]"


COMMAND = Command("bench", BenchOptions, ("checkpoints",), run)
