"""Evaluations as a table for people. Cells are plain text: names from checkpoints are never markup."""

from collections.abc import Collection, Iterable, Sequence

from rich.table import Table
from rich.text import Text

from quantriage.cli.printable import printable
from quantriage.records.tasks import TaskRun
from quantriage.records.types import EvalResult, Finding, Interval


def plain_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], words: Collection[int] = (0,), wrap: bool = False
) -> Table:
    """Figures to the right and on one line, unless `wrap`; columns `words` to the left, wrapped at need."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, head in enumerate(heads):
        left = index in words
        table.add_column(
            Text(printable(head)),
            justify="left" if left else "right",
            no_wrap=not (left or wrap),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


_COLUMNS = ("", "bits/weight", "KL [95%]", "perplexity", "agreement")


def evaluations(results: Sequence[EvalResult]) -> Table:
    """One row per evaluation: label, stored bits, KL with its interval, perplexity, top-1 agreement."""
    rows = (
        (
            result.label,
            _bits(result),
            with_interval(result.kl),
            f"{result.perplexity.value:.3f}",
            f"{100 * result.top1_agreement.value:.1f}%",
        )
        for result in results
    )
    return plain_table(_COLUMNS, rows)


def _bits(result: EvalResult) -> str:
    """4.50, and in brackets the bits of the blocks alone and of the whole file where they are told apart."""
    if result.blocks_bits_per_weight is None:
        return f"{result.bits_per_weight:.2f}"
    apart = (result.blocks_bits_per_weight, result.file_bits_per_weight)
    told = ", ".join(f"{bits:.2f}" for bits in apart if bits is not None)
    return f"{result.bits_per_weight:.2f} ({told})"


_TASK_COLUMNS = ("task", "metric", "items", "reference", "candidate", "difference [95%]", "lost, won", "p")


def task_measures(run: TaskRun) -> Table:
    """Accuracies in percent, the paired difference in points, and how many answers turned wrong and right."""
    named = [(result.name, measure) for result in run.tasks for measure in result.measures]
    rows = []
    for name, found in [*named, *([("all of them", run.pooled)] if run.pooled else [])]:
        gap = found.difference
        cells = (
            name,
            found.metric,
            f"{found.items}",
            f"{100 * found.reference.value:.1f}",
            f"{100 * found.candidate.value:.1f}",
            f"{100 * gap.value:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]",
            f"{found.lost}, {found.won}",
            f"{found.p_value:.2g}",
        )
        rows.append(cells)
    return plain_table(_TASK_COLUMNS, rows, words=(0, 1))


def with_interval(interval: Interval) -> str:
    """0.0832 [0.0811, 0.0853]."""
    return f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def findings(found: Sequence[Finding], most: int = 5) -> tuple[str, ...]:
    """Warnings and errors in words, the first `most` of them; the report has them all."""
    serious = [finding for finding in found if finding.severity != "info"]
    lines = [printable(f"{f.severity}: {f'{f.site}: ' if f.site else ''}{f.text}") for f in serious[:most]]
    if len(serious) > most:
        lines.append(f"... and {len(serious) - most} more in the report")
    return tuple(lines)
