"""Advice: the strategies that meet the constraints in order, sizes and losses, and why the rest lost."""

from collections.abc import Sequence
from dataclasses import dataclass

from quantriage.records.advice import Advice, Figure, Rejected, Strategy
from quantriage.report.chart import ACCENT, INK, MUTED, SERIES, Chart, View, axis, figure, log_axis, points
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.wording import https_link, number, plural, sentence, size, tooltip

_BASES = {"measured": (SERIES[0], "circle"), "expected": (SERIES[3], "diamond"), "unknown": (MUTED, "x")}


@dataclass(frozen=True)
class FigureCell:
    """A figure in words with its basis and, for a web source, its address."""

    basis: str
    text: str
    link: str | None


@dataclass(frozen=True)
class StrategyRow:
    """One strategy."""

    rank: int
    title: str
    engine: str
    bits: str
    weights: str
    cache: str
    total: str
    quality: FigureCell
    speed: FigureCell
    why: str
    commands: tuple[str, ...]
    made: str


@dataclass(frozen=True)
class RejectedRow:
    """One that lost, and why."""

    title: str
    engine: str
    total: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class AdviceContent:
    """Answer, constraints, strategies, the rest, notes."""

    state: str
    badge: str
    sentence: str
    asked: str
    strategies: tuple[StrategyRow, ...]
    rejected: tuple[RejectedRow, ...]
    notes: tuple[str, ...]


def build(records: RunRecords) -> Section | None:
    """From the advice; left out without."""
    found = records.advice
    if found is None:
        return None
    content = AdviceContent(
        state="proven" if found.strategies else "blamed",
        badge="First choice" if found.strategies else "Nothing fits",
        sentence=found.sentence,
        asked=_asked(found),
        strategies=tuple(_strategy(one) for one in found.strategies),
        rejected=tuple(_rejected(one) for one in found.rejected),
        notes=tuple(sentence(note) for note in found.notes),
    )
    lead = f"{plural(len(found.strategies), 'way')} of storing and running it, of those that the rules know."
    return Section("advice", "Which way to quantize", lead, content, _charts(found))


def _asked(found: Advice) -> str:
    asked = found.constraints
    floor = f"quality {asked.quality}"
    if asked.max_kl is not None:
        floor = f"KL of at most {number(asked.max_kl)}"
    elif asked.max_perplexity_ratio is not None:
        floor = f"perplexity of at most {number(asked.max_perplexity_ratio)} times the reference's"
    return (
        f"{size(asked.memory_bytes)} of memory, {asked.hardware}, engine {asked.engine}, "
        f"{plural(asked.sequences, 'sequence')} of {asked.context:,} tokens, {asked.priority} first, "
        f"{floor}; the model has {found.weights / 1e6:,.4g} million weights"
    )


def _strategy(one: Strategy) -> StrategyRow:
    return StrategyRow(
        one.rank,
        one.title,
        one.engine,
        number(one.bits),
        size(one.weight_bytes),
        size(one.cache_bytes),
        size(one.total_bytes),
        _cell(one.quality),
        _cell(one.speed),
        sentence(one.why),
        one.commands,
        one.made,
    )


def _cell(found: Figure) -> FigureCell:
    return FigureCell(found.basis, found.text, https_link(found.source))


def _rejected(one: Rejected) -> RejectedRow:
    total = "–" if one.total_bytes is None else size(one.total_bytes)
    return RejectedRow(one.title, one.engine, total, one.reasons)


def _charts(found: Advice) -> tuple[Chart, ...]:
    """Size against loss, where a loss is a figure; what has only an order stands in the table alone."""
    shown = [one for one in found.strategies if one.quality.value]
    if len(shown) < 2:
        return ()
    traces = []
    for basis, (colour, symbol) in _BASES.items():
        chosen = [one for one in shown if one.quality.basis == basis]
        if chosen:
            traces.append(
                points(
                    [one.total_bytes / 1e9 for one in chosen],
                    [one.quality.value or 0.0 for one in chosen],
                    [
                        tooltip([f"{o.rank}. {o.title}, {o.engine}", size(o.total_bytes), o.quality.text])
                        for o in chosen
                    ],
                    {"size": 12, "symbol": symbol, "color": colour, "line": {"width": 1, "color": INK}},
                    basis,
                    mode="markers+text",
                    text=[str(one.rank) for one in chosen],
                    textposition="top center",
                )
            )
    values = [one.quality.value or 0.0 for one in shown]
    memory = found.constraints.memory_bytes / 1e9
    most = max(one.total_bytes for one in shown) / 1e9
    shapes = []
    if memory < 1.5 * most:
        shapes.append(
            {
                "type": "line",
                "x0": memory,
                "x1": memory,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": ACCENT, "dash": "dot"},
            }
        )
    made = figure(
        traces,
        axis("memory with cache, GB", rangemode="tozero"),
        log_axis("KL, nats per token", values),
        height=400,
        shapes=shapes,
    )
    return (Chart("advice-chart", "", (View("Size and loss", _caption(shown), made),)),)


def _caption(shown: Sequence[Strategy]) -> str:
    least = min(shown, key=lambda one: one.quality.value or 0.0)
    small = min(shown, key=lambda one: one.total_bytes)
    measured = sum(one.quality.basis == "measured" for one in shown)
    basis = (
        f"{measured} of {len(shown)} losses are measured on this model; the others were published for "
        "another model and give an order, not its loss."
    )
    if least is small:
        return f"{least.title} is both the smallest and loses least of those with a figure. {basis}"
    return (
        f"{least.title} loses least ({number(least.quality.value or 0.0)}), {small.title} is the smallest "
        f"({size(small.total_bytes)}); numbers are the ranks. {basis}"
    )
