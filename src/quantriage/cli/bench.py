"""`quantriage bench`: how fast the quantized model is against the unquantized one, and why."""

from rich.table import Table

from quantriage.cli.command import Command, Outcome
from quantriage.cli.printable import printable
from quantriage.cli.tables import plain_table
from quantriage.records.bench import Bench
from quantriage.records.run_dir import REPORT, RunDir
from quantriage.records.types import Interval
from quantriage.report.wording import engine_failure
from quantriage.stream.progress import Progress
from quantriage.workflows.bench_options import BenchOptions


def run(options: BenchOptions, progress: Progress) -> Outcome:
    """Measure, print the table, what is slower and why, and under which conditions."""
    from quantriage.workflows.bench import bench

    found = bench(options, progress)
    said = []
    for one in found.comparisons:
        said.append(one.sentence)
        said += [f"  {'' if r.measured else '(inferred) '}{r.code}: {r.text}" for r in one.reasons]
    said += [f"not run: {f.checkpoint} in {f.engine}: {engine_failure(f.error)}" for f in found.failures]
    said += [f"conditions: {text}" for text in found.conditions]
    if options.run is not None:
        said.append(f"report: {RunDir(options.run).file(REPORT)}")
    return Outcome(record=found, lines=(_table(found), *map(printable, said), printable(found.sentence)))


def _table(found: Bench) -> Table:
    rows = (
        (
            f"{one.label} ({one.layout}, {one.dtype})",
            _interval(one.prefill),
            _interval(one.decode),
            _interval(one.first_token),
            f"{one.peak_memory / 1e6:.0f}",
        )
        for one in found.entries
    )
    return plain_table(("", "prefill tok/s", "decode tok/s", "first token, s", "peak MB"), rows, wrap=True)


def _interval(found: Interval) -> str:
    return f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]"


COMMAND = Command("bench", BenchOptions, ("checkpoints",), run)
