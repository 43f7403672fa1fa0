"""`quantriage sweep`: one choice as a table, with a recommendation that held-out text confirms or not."""

from rich.table import Table

from quantriage.cli.command import Command, Outcome
from quantriage.cli.printable import printable
from quantriage.cli.tables import plain_table
from quantriage.records.run_dir import REPORT, RunDir
from quantriage.records.sweep import Confirmation, Sweep, SweepVariant
from quantriage.stream.progress import Progress
from quantriage.workflows.sweep_options import SweepOptions

_NOTES = 4


def run(options: SweepOptions, progress: Progress) -> Outcome:
    """Sweep, and print for each choice its table, the recommendation and what held-out text says."""
    from quantriage.workflows.sweep import sweep

    record = sweep(options, progress)
    lines: list[Table | str] = []
    for found in record.sweeps:
        if found.choice in options.choice:
            lines += [printable(f"{found.choice}: {found.question}"), _table(found), *_sentences(found)]
    lines.append(printable(f"report: {RunDir(options.run).file(REPORT)}"))
    return Outcome(record=record, lines=tuple(lines))


def _table(found: Sweep) -> Table:
    """Narrow enough for eighty columns; the report has every figure."""
    clips = found.choice == "clipping"
    heads = ["", "bits", "error", *(["clipped"] if clips else []), "KL [95%]", "perplexity", "CPU s"]
    return plain_table(heads, (_cells(found, variant, clips) for variant in found.variants))


def _cells(found: Sweep, variant: SweepVariant, clips: bool) -> list[str]:
    mark = " *" if variant.label == found.recommended else " -" if variant.label == found.baseline else ""
    parts, kl = variant.parts, variant.kl
    clipped = [f"{100 * parts.clipped / parts.weights:.1f}%" if parts is not None else ""] if clips else []
    return [
        variant.label + mark,
        f"{variant.bits_per_weight:.3f}",
        f"{variant.relative_error:.4f}",
        *clipped,
        f"{kl.value:.4f} [{kl.low:.4f}, {kl.high:.4f}]",
        f"{variant.perplexity.value:.2f}",
        f"{variant.rounding_cpu_seconds + variant.statistics_cpu_seconds:.0f}",
    ]


def _loading(found: Sweep) -> list[str]:
    """Which settings each set of targets loads."""
    by_targets: dict[tuple[str, ...], list[str]] = {}
    for variant in found.variants:
        by_targets.setdefault(variant.loads, []).append(variant.label)
    if len(by_targets) == 1:
        (targets,) = by_targets
        return [f"loads in: {', '.join(targets) or 'no target here'}"]
    return [f"loads in {', '.join(t) or 'no target here'}: {'; '.join(of)}" for t, of in by_targets.items()]


def _sentences(found: Sweep) -> list[str]:
    lines = [
        "* recommended, - without the choice; error: of the weights, relative; "
        f"perplexity of the original: {found.reference_perplexity.value:.3f}",
        f"recommended: {found.recommended}. {found.reason}",
        held_out(found.confirmation),
        *_loading(found),
        *(f"note: {note}" for note in found.notes[:_NOTES]),
    ]
    if len(found.notes) > _NOTES:
        lines.append(f"... and {len(found.notes) - _NOTES} more notes in the report")
    loading = {v.label: v.loads_note for v in found.variants if v.loads_note}
    lines += [f"note: {note}" for note in dict.fromkeys(loading.values())]
    lines.append(f"{found.seconds:.1f} s, {found.peak_memory_bytes / 1e6:.0f} MB")
    return [printable(line) for line in lines]


def held_out(found: Confirmation) -> str:
    """What held-out text says of the recommendation."""
    equal = found.difference_at_equal_size
    at_equal = f" (at equal size {equal.low:+.4f} to {equal.high:+.4f})" if equal != found.difference else ""
    return (
        f"held-out text: {found.verdict}, {found.recommended} against {found.against}: KL "
        f"{found.recommended_kl.value:.4f} against {found.against_kl.value:.4f}, paired difference "
        f"{found.difference.low:+.4f} to {found.difference.high:+.4f}{at_equal}; perplexity "
        f"{found.recommended_perplexity.value:.3f} against {found.against_perplexity.value:.3f}"
    )


COMMAND = Command("sweep", SweepOptions, ("model",), run)
