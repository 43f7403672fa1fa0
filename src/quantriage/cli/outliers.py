"""`quantriage outliers`: which weights and activations stand out, and what to do about them."""

import textwrap

from quantriage.cli.command import Command, Outcome
from quantriage.cli.printable import printable
from quantriage.records.outliers import OutlierChannel, OutlierConclusion, Outliers, WeightOutliers
from quantriage.records.run_dir import REPORT, RunDir
from quantriage.stream.progress import Progress
from quantriage.workflows.outliers_options import OutliersOptions

SHOWN = 5  # places printed for each kind; --json and the record have all


def run(options: OutliersOptions, progress: Progress) -> Outcome:
    """Look for outliers, print the answers and the worst places."""
    from quantriage.workflows.outliers import outliers

    record = outliers(options, progress)
    lines = [line for conclusion in record.conclusions for line in _answer(conclusion)]
    worst = sorted(record.weights, key=lambda w: -w.range_ratio)[:SHOWN]
    lines.append("weights with the largest range ratio:")
    lines += [f"  {_weight(weight)}" for weight in worst]
    if record.inputs:
        lines.append("inputs with the largest maximum over mean magnitude:")
        ranked = sorted(record.inputs, key=lambda i: -i.ratio)[:SHOWN]
        lines += [f"  {i.ratio:8,.0f}  {i.name}{_channels(i.channels)}" for i in ranked]
    lines.append(
        f"{len(record.weights)} weight matrices, {len(record.inputs)} inputs"
        f"{_tokens(record)} in {record.seconds:.1f} s, {record.peak_memory_bytes / 1e6:.0f} MB"
    )
    if options.run is not None:
        lines.append(f"report: {RunDir(options.run).file(REPORT)}")
    return Outcome(record=record, lines=tuple(_indented(line) for line in lines))


def _answer(conclusion: OutlierConclusion) -> list[str]:
    words = textwrap.wrap(conclusion.sentence, 100)
    return [
        *words,
        *textwrap.wrap(f"To do: {conclusion.action}", 98, initial_indent="  ", subsequent_indent="  "),
    ]


def _weight(weight: WeightOutliers) -> str:
    wasted = ", ".join(f"{s.wasted:.0%} of {s.scheme}" for s in weight.schemes)
    carried = f", input channel {weight.input_channels[0].index}" if weight.input_channels else ""
    return f"{weight.range_ratio:8.1f}  {weight.site}{carried}{f'; wastes {wasted}' if wasted else ''}"


def _channels(channels: tuple[OutlierChannel, ...]) -> str:
    named = [str(channel.index) for channel in channels[:3]]
    return f", channels {', '.join(named)}" if named else ""


def _tokens(record: Outliers) -> str:
    return f", {record.sequences} x {record.length} tokens" if record.inputs else ""


def _indented(line: str) -> str:
    width = len(line) - len(line.lstrip())
    return " " * width + printable(line)


COMMAND = Command("outliers", OutliersOptions, ("model",), run)
