"""Speed and memory against the unquantized model: bars, the comparison in words, and why it is not faster."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quantriage.records.bench import Bench, BenchComparison, BenchEntry
from quantriage.records.types import Interval
from quantriage.report.bench_chart import Bar, bars_figure
from quantriage.report.chart import Chart, View
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.wording import engine_failure, number, plural, sentence, size, span


@dataclass(frozen=True)
class ReasonRow:
    """A reason in words; `how` says whether it was measured."""

    code: str
    text: str
    how: str


@dataclass(frozen=True)
class ComparisonRow:
    """One quantized model against its reference."""

    state: str  # "proven" faster, "blamed" slower, "open" else
    badge: str
    sentence: str
    reasons: tuple[ReasonRow, ...]


@dataclass(frozen=True)
class EntryRow:
    """One model in one engine; ratios are empty for a reference."""

    label: str
    beneath: str
    prefill: str
    prefill_between: str
    decode: str
    decode_between: str
    first: str
    memory: str
    file: str


@dataclass(frozen=True)
class BenchContent:
    """The comparisons, all entries, what did not run, and the conditions."""

    comparisons: tuple[ComparisonRow, ...]
    entries: tuple[EntryRow, ...]
    failures: tuple[tuple[str, str], ...]
    conditions: tuple[str, ...]


def build(records: RunRecords) -> Section | None:
    """From the measurement; left out without."""
    found = records.bench
    if found is None or not found.entries:
        return None
    content = BenchContent(
        comparisons=tuple(_comparison(one) for one in found.comparisons),
        entries=tuple(_entry(one) for one in found.entries),
        failures=tuple(
            (f"{one.checkpoint} in {one.engine}", engine_failure(one.error)) for one in found.failures
        ),
        conditions=tuple(sentence(text) for text in (*found.conditions, _machine(found))),
    )
    return Section("bench", "Speed against the unquantized model", found.sentence, content, (_chart(found),))


def _comparison(one: BenchComparison) -> ComparisonRow:
    outcomes = (one.decode_outcome, one.prefill_outcome)
    if "slower" in outcomes:
        phases = [n for n, o in zip(("decode", "prefill"), outcomes, strict=True) if o == "slower"]
        state, badge = "blamed", f"Slower in {' and '.join(phases)}"
    elif "faster" in outcomes:
        state, badge = "proven", "Faster"
    else:
        state, badge = "open", "Not told apart"
    reasons = tuple(
        ReasonRow(r.code, sentence(r.text), "measured here" if r.measured else "inferred from the format")
        for r in one.reasons
    )
    return ComparisonRow(state, badge, one.sentence, reasons)


def _entry(one: BenchEntry) -> EntryRow:
    return EntryRow(
        label=one.label,
        beneath=f"{one.layout}, {one.dtype}, {one.version}{', unquantized' if one.reference else ''}",
        prefill=number(one.prefill.value),
        prefill_between=span(one.prefill),
        decode=number(one.decode.value),
        decode_between=span(one.decode),
        first=f"{number(one.first_token.value)} s",
        memory=size(one.peak_memory) + (f", GPU {size(one.gpu_memory)}" if one.gpu_memory else ""),
        file=size(one.file_bytes),
    )


def _machine(found: Bench) -> str:
    bandwidth = (
        f", memory read at {number(found.read_bandwidth / 1e9)} GB/s by {plural(found.threads, 'thread')}"
        if found.read_bandwidth
        else ""
    )
    return f"{found.hardware.cpu}, {plural(found.hardware.cores, 'core')}{bandwidth}"


def _chart(found: Bench) -> Chart:
    """Decode first: it is what a person waits for. Memory has no interval, for it is a maximum."""
    views = [
        _view(found.entries, "Decode", "tokens per second", lambda e: e.decode, most_is_best=True),
        _view(found.entries, "Prefill", "tokens per second", lambda e: e.prefill, most_is_best=True),
        _view(found.entries, "First token", "seconds", lambda e: e.first_token, most_is_best=False),
        _view(found.entries, "Memory", "peak, GB", lambda e: _point(e.peak_memory / 1e9), most_is_best=False),
    ]
    return Chart("bench-chart", "", tuple(views))


def _point(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)


def _view(
    entries: Sequence[BenchEntry],
    label: str,
    unit: str,
    figure_of: Callable[[BenchEntry], Interval],
    *,
    most_is_best: bool,
) -> View:
    bars = [
        Bar(f"{one.label} ({one.layout})", figure_of(one), one.reference, (one.dtype, one.version))
        for one in entries
    ]
    return View(label, _caption(bars, unit, most_is_best), bars_figure(bars, unit))


def _caption(bars: Sequence[Bar], unit: str, most_is_best: bool) -> str:
    """The best quantized model against the best unquantized one: what a reader would choose between."""

    def better(bar: Bar) -> float:
        return bar.found.value if most_is_best else -bar.found.value

    quantized = [bar for bar in bars if not bar.reference]
    dense = [bar for bar in bars if bar.reference]
    if not quantized or not dense:
        return f"{bars[0].name}: {number(bars[0].found.value)} {unit}."
    best, rival = max(quantized, key=better), max(dense, key=better)
    wins = better(best) > better(rival)
    apart = best.found.low > rival.found.high or best.found.high < rival.found.low
    ratio = best.found.value / rival.found.value if rival.found.value else 1.0
    verdict = f"so quantizing {'pays' if wins else 'does not pay'} here"
    if not apart:
        verdict = "which these intervals do not tell apart"
    return (
        f"The best quantized model, {best.name}, has {number(best.found.value)} {unit}, the best unquantized "
        f"one, {rival.name}, {number(rival.found.value)}: {number(ratio)} times as much, {verdict}."
    )
