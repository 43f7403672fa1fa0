"""Sweeps: for each choice its recommendation, pictures, table of settings, and the optimum of each layer."""

from dataclasses import dataclass

from quantriage.records.sweep import Confirmation, Sweep, SweepOptimum, SweepVariant
from quantriage.records.types import Interval
from quantriage.report.chart import Chart
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.sweep_chart import role, views
from quantriage.report.wording import duration, listed, number, percent, plural, sentence, signed, size, span

_NOTES = 12
_LAYERS = 400
_STATES = {"wins": "proven", "no difference shown": "", "loses": "blamed"}


@dataclass(frozen=True)
class VariantRow:
    """One setting, in words."""

    label: str
    role: str
    bits: str
    size: str
    rmse: str
    relative: str
    output: str
    clipped: str
    clipping_share: str
    kl: str
    kl_between: str
    change: str
    perplexity: str
    perplexity_change: str
    seconds: str
    loads: str


@dataclass(frozen=True)
class OptimumRow:
    """The best setting of one layer."""

    site: str
    plain: str
    plain_gain: str
    output: str
    output_gain: str


@dataclass(frozen=True)
class SweepBlock:
    """One choice."""

    name: str
    title: str
    state: str
    badge: str
    recommendation: str
    held_out: str
    caption: str
    charts: tuple[Chart, ...]
    rows: tuple[VariantRow, ...]
    clips: bool
    has_output: bool
    joint: bool
    optima: tuple[OptimumRow, ...]
    optima_beyond: int
    notes: tuple[str, ...]
    notes_beyond: int


@dataclass(frozen=True)
class SweepContent:
    """All choices of the run."""

    blocks: tuple[SweepBlock, ...]


def build(records: RunRecords) -> Section | None:
    """From the sweeps; left out without."""
    if records.sweep is None or not records.sweep.sweeps:
        return None
    blocks = tuple(_block(found) for found in records.sweep.sweeps)
    names = [found.choice for found in records.sweep.sweeps]
    lead = (
        f"One choice varied at a time, everything else held: {listed(names, 9)}. Decided on selection text, "
        "confirmed on text that took no part in the choice."
    )
    charts = tuple(chart for block in blocks for chart in block.charts)
    return Section("sweep", "Sweeps", lead, SweepContent(blocks), charts)


def _block(found: Sweep) -> SweepBlock:
    clips = found.choice == "clipping"
    return SweepBlock(
        name=found.choice,
        title=sentence(found.question),
        state=_STATES[found.confirmation.verdict],
        badge=badge(found),
        recommendation=sentence(found.reason),
        held_out=held_out(found.confirmation),
        caption=_caption(found),
        charts=(Chart(f"sweep-{found.choice}", "", views(found)),),
        rows=tuple(_row(found, variant) for variant in found.variants),
        clips=clips,
        has_output=any(v.output_error is not None for v in found.variants),
        joint=any(v.joint_error is not None for v in found.variants),
        optima=tuple(_optimum(one) for one in found.optima[:_LAYERS]),
        optima_beyond=max(0, len(found.optima) - _LAYERS),
        notes=_notes(found)[:_NOTES],
        notes_beyond=max(0, len(_notes(found)) - _NOTES),
    )


def badge(found: Sweep) -> str:
    """The recommendation in a few words, and whether held-out text agrees."""
    kept = found.recommended == found.baseline
    what = f"Keep {found.recommended}" if kept else f"Use {found.recommended}"
    verdict = found.confirmation.verdict
    agrees = {
        "wins": "held-out text agrees",
        "no difference shown": "held-out text shows no difference",
        "loses": "held-out text disagrees",
    }
    return f"{what}: {agrees[verdict]}"


def held_out(found: Confirmation) -> str:
    """The pair on held-out text."""
    text = (
        f"On held-out text {found.recommended} has KL {number(found.recommended_kl.value)} "
        f"({span(found.recommended_kl)}) and {found.against} {number(found.against_kl.value)} "
        f"({span(found.against_kl)}); window by window the difference is {_change(found.difference)}"
    )
    if found.difference_at_equal_size != found.difference:
        text += f", and {_change(found.difference_at_equal_size)} at equal size"
    return (
        f"{text}. Perplexity {number(found.recommended_perplexity.value, 4)} and "
        f"{number(found.against_perplexity.value, 4)}."
    )


def _change(change: Interval) -> str:
    return f"{signed(change.value)} ({signed(change.low)} to {signed(change.high)})"


def _caption(found: Sweep) -> str:
    return (
        f"{plural(len(found.variants), 'setting')} of {found.scheme}, rounded by {found.method}; the "
        f"original has perplexity {number(found.reference_perplexity.value, 4)} on the selection text and "
        f"{number(found.reference_perplexity_held_out.value, 4)} on the held-out text. "
        f"{duration(found.seconds)}, {size(found.peak_memory_bytes)} of memory at most."
    )


def _row(found: Sweep, variant: SweepVariant) -> VariantRow:
    parts = variant.parts
    whole = parts.clipping + parts.rounding if parts is not None else 0.0
    against = variant.against_baseline
    output = variant.joint_error if variant.joint_error is not None else variant.output_error
    loss = variant.perplexity.value / found.reference_perplexity.value - 1
    return VariantRow(
        label=variant.label,
        role="" if role(found, variant) == "other" else role(found, variant),
        bits=number(variant.bits_per_weight, 4),
        size=size(variant.bytes),
        rmse=number(variant.rmse),
        relative=percent(variant.relative_error),
        output="–" if output is None else percent(output),
        clipped="–" if parts is None else percent(parts.clipped / parts.weights),
        clipping_share=percent(parts.clipping / whole) if parts is not None and whole else "–",
        kl=number(variant.kl.value),
        kl_between=span(variant.kl),
        change="" if against is None else f"{signed(against.low)} to {signed(against.high)}",
        perplexity=number(variant.perplexity.value, 4),
        perplexity_change=f"{'+' if loss >= 0 else '−'}{percent(abs(loss))}",
        seconds=duration(variant.rounding_cpu_seconds + variant.statistics_cpu_seconds),
        loads=", ".join(variant.loads) or "no target here",
    )


def _optimum(one: SweepOptimum) -> OptimumRow:
    def shown(value: float | None) -> str:
        return "–" if value is None else number(value)

    def gain(value: float | None) -> str:
        return "–" if value is None else percent(value)

    return OptimumRow(
        one.site, shown(one.best_plain), gain(one.plain_gain), shown(one.best_output), gain(one.output_gain)
    )


def _notes(found: Sweep) -> tuple[str, ...]:
    own = [f"{sentence(v.loads_note)}." for v in found.variants if v.loads_note]
    return tuple(dict.fromkeys([*own, *found.notes]))
