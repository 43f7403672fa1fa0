"""Every evaluation in one table, with intervals, and the paired comparisons that the verdict rests on."""

import math
from dataclasses import dataclass

from quantriage.records.types import Comparison, EvalResult, Interval, Proof
from quantriage.report.chart import (
    ACCENT,
    INK,
    MUTED,
    PRIMARY,
    Axis,
    Chart,
    View,
    axis,
    figure,
    log_axis,
    points,
)
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.wording import chart_text, number, percent, plural, signed, size, span, tooltip

_ORDER = {"reference": 0, "uniform": 1, "first-and-last": 2, "mix": 3, "candidate": 4}


@dataclass(frozen=True)
class Row:
    """One evaluation. Values are ready text; `between` are the 95% intervals under them."""

    label: str
    kind: str
    highlighted: bool
    bits: str
    body: str
    file: str
    perplexity: str
    perplexity_between: str
    kl: str
    kl_between: str
    kl_p99: str
    agreement: str
    agreement_between: str
    flips: str


@dataclass(frozen=True)
class Paired:
    """One paired comparison in words."""

    first: str
    second: str
    difference: str
    between: str
    meaning: str


@dataclass(frozen=True)
class MetricsContent:
    """The tables of the section."""

    rows: tuple[Row, ...]
    paired: tuple[Paired, ...]
    paired_caption: str
    noise: tuple[str, ...]
    caption: str


def build(records: RunRecords) -> Section | None:
    """From the proof; left out without one."""
    proof = records.proof
    if proof is None or not proof.results:
        return None
    results = sorted(proof.results, key=lambda r: (_ORDER[r.kind], -r.kl.value))
    rows = tuple(_row(r, r is records.shipped) for r in results)
    if all(r.kind != "reference" for r in results):
        rows = (_reference_row(proof), *rows)
    first = results[0]
    content = MetricsContent(
        rows=rows,
        paired=tuple(_paired(c) for c in proof.comparisons),
        paired_caption=_paired_caption(proof.comparisons),
        noise=tuple(f"{n.dtype}: KL {number(n.kl)}, flips {percent(n.flips)}" for n in proof.noise_floor),
        caption=_table_caption(proof, records.shipped),
    )
    lead = (
        f"{plural(len(results), 'evaluation')} on the same {first.tokens:,} held-out tokens "
        f"({plural(len(first.sequences.kl), 'sequence')}); small figures are 95% bootstrap intervals."
    )
    return Section("metrics", "What was measured", lead, content, _kl_chart(results, proof, records.shipped))


def _row(result: EvalResult, highlighted: bool) -> Row:
    reference = result.kind == "reference"
    return Row(
        label=result.label,
        kind={"candidate": "shipped"}.get(result.kind, result.kind),
        highlighted=highlighted,
        bits=_bits(result),
        body=size(result.body_bytes),
        file=size(result.file_bytes) if result.file_bytes is not None else "–",
        perplexity=number(result.perplexity.value, 4),
        perplexity_between=span(result.perplexity),
        kl="0" if reference else number(result.kl.value),
        kl_between="" if reference else span(result.kl),
        kl_p99=number(result.kl_percentiles["99"]) if "99" in result.kl_percentiles else "–",
        agreement=percent(result.top1_agreement.value),
        agreement_between="" if reference else _percent_span(result.top1_agreement),
        flips=percent(result.flips),
    )


def _bits(result: EvalResult) -> str:
    """Over all sites; where embedding and head are among them, of the blocks alone and the file as well."""
    blocks, whole = result.blocks_bits_per_weight, result.file_bits_per_weight
    if blocks is None:
        return number(result.bits_per_weight)
    apart = f"{number(blocks)} in blocks" + (f", {number(whole)} whole file" if whole is not None else "")
    return f"{number(result.bits_per_weight)} ({apart})"


def _percent_span(interval: Interval) -> str:
    return f"{interval.low * 100:.1f} to {interval.high * 100:.1f}%"


def _reference_row(proof: Proof) -> Row:
    perplexity = proof.reference_perplexity
    return Row(
        label="reference",
        kind="reference",
        highlighted=False,
        bits="–",
        body="–",
        file="–",
        perplexity=number(perplexity.value, 4),
        perplexity_between=span(perplexity),
        kl="0",
        kl_between="",
        kl_p99="0",
        agreement="100%",
        agreement_between="",
        flips="0%",
    )


def _paired(comparison: Comparison) -> Paired:
    gap = comparison.difference
    if gap.high < 0:
        meaning = f"{comparison.first} loses less; the interval excludes zero"
    elif gap.low > 0:
        meaning = f"{comparison.first} loses more; the interval excludes zero"
    else:
        meaning = "no difference beyond chance"
    return Paired(
        comparison.first,
        comparison.second,
        signed(gap.value),
        f"{signed(gap.low)} to {signed(gap.high)}",
        meaning,
    )


def _paired_caption(comparisons: tuple[Comparison, ...]) -> str:
    if not comparisons:
        return ""
    better = sum(c.difference.high < 0 for c in comparisons)
    worse = sum(c.difference.low > 0 for c in comparisons)
    text = f"The first loses less beyond chance in {better} of {plural(len(comparisons), 'comparison')}"
    return text + (f" and more in {worse}." if worse else ".")


def _table_caption(proof: Proof, shipped: EvalResult | None) -> str:
    floor = max((n.kl for n in proof.noise_floor), default=0.0)
    if shipped is None:
        return "Nothing was shipped in this run."
    change = shipped.perplexity.value / proof.reference_perplexity.value - 1
    text = (
        f"{shipped.label} keeps the reference's first choice at {percent(shipped.top1_agreement.value)} of "
        f"tokens and moves perplexity by {signed(change * 100)}%"
    )
    return text + (f"; its KL is {number(shipped.kl.value / floor)} times the noise floor." if floor else ".")


def _kl_chart(results: list[EvalResult], proof: Proof, shipped: EvalResult | None) -> tuple[Chart, ...]:
    """KL of each evaluation with its interval, best at the top; the noise floor as a line."""
    shown = sorted(
        (r for r in results if r.kind != "reference" and r.kl.value > 0), key=lambda r: -r.kl.value
    )
    if len(shown) < 2:
        return ()
    values = [r.kl.value for r in shown]
    marks = points(
        values,
        [],
        [
            tooltip(
                [
                    r.label,
                    f"KL {number(r.kl.value)}, {span(r.kl)}",
                    f"{number(r.bits_per_weight)} bits per weight",
                ]
            )
            for r in shown
        ],
        {
            "size": [15 if r is shipped else 11 for r in shown],
            "symbol": ["star" if r is shipped else "circle" for r in shown],
            "color": [ACCENT if r is shipped else PRIMARY for r in shown],
            "opacity": 1,
        },
        y=[f"{chart_text(r.label)}  " for r in shown],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [r.kl.high - r.kl.value for r in shown],
            "arrayminus": [r.kl.value - r.kl.low for r in shown],
            "color": MUTED,
            "thickness": 1.5,
            "width": 5,
        },
    )
    floor = max((n.kl for n in proof.noise_floor), default=0.0)
    kl_axis = _kl_axis(shown, floor)
    drawn = figure(
        [marks],
        kl_axis,
        axis("", type="category"),
        height=105 + 38 * len(shown),
        showlegend=False,
        margin={"l": 8, "r": 12, "t": 26, "b": 8},
        **_floor_line(floor, kl_axis.get("type") == "log"),
    )
    return (Chart("kl-results", "KL of every candidate", (View("KL", _kl_caption(shown, shipped), drawn),)),)


def _kl_axis(shown: list[EvalResult], floor: float) -> Axis:
    """Logarithmic where the candidates differ by much, so that the good ones can be told apart."""
    title = "KL, nats per token"
    low, high = min(r.kl.low for r in shown), max(r.kl.high for r in shown)
    if low <= 0 or high < 8 * low:
        return axis(title, rangemode="tozero")
    return log_axis(title, [low, high, *([floor] if floor > low / 100 else [])])


def _floor_line(floor: float, log: bool) -> dict[str, object]:
    """A dotted line at the noise floor, as plotly's shape and annotation."""
    if floor <= 0:
        return {}
    line = {"color": INK, "width": 1, "dash": "dot"}
    shape = {"type": "line", "x0": floor, "x1": floor, "y0": 0, "y1": 1, "yref": "paper", "line": line}
    words = {"text": "noise floor", "x": 0, "xref": "x", "y": 1, "yref": "paper", "showarrow": False}
    words |= {"xanchor": "left", "yanchor": "bottom", "font": {"size": 12}}
    return {"shapes": [shape], "annotations": [words | {"x": math.log10(floor) if log else floor}]}


def _kl_caption(shown: list[EvalResult], shipped: EvalResult | None) -> str:
    best, worst = shown[-1], shown[0]
    if shipped is not None and shipped is best:
        second = shown[-2]
        return (
            f"{shipped.label} is the lowest at {number(shipped.kl.value)}, "
            f"{percent(1 - shipped.kl.value / second.kl.value)} below {second.label} and "
            f"{percent(1 - shipped.kl.value / worst.kl.value)} below {worst.label}."
        )
    text = f"{best.label} is the lowest at {number(best.kl.value)}"
    return text + (
        f"; {shipped.label}, which was shipped, has {number(shipped.kl.value)}." if shipped else "."
    )
