"""Where in the text the shipped model errs: the worst tokens in context, how the loss is spread, and where.

A mean hides that a few tokens carry most of the loss; seeing them tells whether names, numbers or white
space went wrong.
"""

from dataclasses import dataclass

from quantriage.records.types import EvalResult, TokenLoss
from quantriage.report.chart import ACCENT, SERIES, Chart, Trace, View, axis, figure, log_axis
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.wording import chart_text, number, percent, plural, tail, tooltip, visible

SHOWN = 12
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")


@dataclass(frozen=True)
class Place:
    """One token in its context."""

    before: str
    actual: str
    reference: str
    candidate: str
    reference_right: bool
    kl: str
    where: str


@dataclass(frozen=True)
class TextErrorsContent:
    """The worst places and what they have in common."""

    places: tuple[Place, ...]
    caption: str


def build(records: RunRecords) -> Section | None:
    """From the evaluation of what was shipped; left out without it or without any of its details."""
    shipped = records.shipped
    if shipped is None:
        return None
    rivals = _rivals(records, shipped)
    charts = (*_spread(shipped, rivals), *_by_position(shipped, rivals))
    worst = sorted(shipped.worst_tokens, key=lambda t: -t.kl)[:SHOWN]
    if not charts and not worst:
        return None
    content = TextErrorsContent(tuple(_place(t) for t in worst), _places_caption(worst, shipped))
    lead = f"{shipped.label} against the reference, token by token, on {shipped.tokens:,} tokens."
    return Section("text-errors", "Where it errs", lead, content, charts)


def _rivals(records: RunRecords, shipped: EvalResult) -> list[EvalResult]:
    """Worst and best of the others: two lines to hold the shipped one against, not a thicket."""
    others = [
        r
        for r in (records.proof.results if records.proof else ())
        if r.kind != "reference" and r is not shipped
    ]
    ordered = sorted(others, key=lambda r: r.kl.value)
    return ordered[:1] + (ordered[-1:] if len(ordered) > 1 else [])


def _place(token: TokenLoss) -> Place:
    return Place(
        before=tail(token.before),
        actual=visible(token.actual),
        reference=visible(token.reference_top),
        candidate=visible(token.candidate_top),
        reference_right=token.reference_top == token.actual,
        kl=number(token.kl),
        where=f"sequence {token.sequence}, position {token.position}",
    )


def _places_caption(worst: list[TokenLoss], shipped: EvalResult) -> str:
    if not worst:
        return ""
    lost = sum(t.reference_top == t.actual != t.candidate_top for t in worst)
    flipped = sum(t.reference_top != t.candidate_top for t in worst)
    total = shipped.kl.value * shipped.tokens
    share = (
        f"; together they are {percent(sum(t.kl for t in worst) / total)} of all loss" if total > 0 else ""
    )
    return (
        f"Of the {len(worst)} worst tokens the first choice changed at {flipped}, and at {lost} a right "
        f"answer was lost{share}."
    )


def _curve(
    result: EvalResult, xs: list[str] | list[float], ys: list[float], index: int, shipped: bool
) -> Trace:
    colour = ACCENT if shipped else (SERIES[0], SERIES[2])[index % 2]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": xs,
        "y": ys,
        "name": chart_text(result.label),
        "customdata": [tooltip([result.label, f"{x}: KL {number(y)}"]) for x, y in zip(xs, ys, strict=True)],
        "hovertemplate": "%{customdata}<extra></extra>",
        "line": {"color": colour, "width": 3 if shipped else 1.5},
        "marker": {"size": 7, "symbol": _SYMBOLS[0] if shipped else _SYMBOLS[1 + index % 4], "color": colour},
    }


def _spread(shipped: EvalResult, rivals: list[EvalResult]) -> tuple[Chart, ...]:
    keys = [key for key, value in shipped.kl_percentiles.items() if value > 0]
    if len(keys) < 2:
        return ()
    drawn = [r for r in (*rivals, shipped) if all(r.kl_percentiles.get(key, 0) > 0 for key in keys)]
    ticks = ["largest" if key == "max" else f"{key}%" for key in keys]
    curves = [
        _curve(r, ticks, [r.kl_percentiles[key] for key in keys], i, r is shipped)
        for i, r in enumerate(drawn)
    ]
    values = [r.kl_percentiles[key] for r in drawn for key in keys]
    made = figure(
        curves,
        axis("share of tokens with no more than this", type="category"),
        log_axis("KL of a token, nats", values),
        height=340,
    )
    return (
        Chart("kl-spread", "How the loss is spread over tokens", (View("", _spread_caption(shipped), made),)),
    )


def _spread_caption(shipped: EvalResult) -> str:
    found = shipped.kl_percentiles
    mean = shipped.kl.value
    middle, high = found.get("50"), found.get("99")
    if middle and high:
        return (
            f"Half of the tokens lose less than {number(middle)}, one in a hundred more than {number(high)}, "
            f"{number(high / middle)} times as much; the mean of {number(mean)} is made by few."
        )
    return f"The mean is {number(mean)}; the largest recorded percentile is {number(max(found.values()))}."


def _by_position(shipped: EvalResult, rivals: list[EvalResult]) -> tuple[Chart, ...]:
    bins = len(shipped.kl_by_position)
    if bins < 2:
        return ()
    length = shipped.tokens / max(1, len(shipped.sequences.kl))
    centres = [round((i + 0.5) * length / bins) for i in range(bins)]
    drawn = [r for r in (*rivals[:1], shipped) if len(r.kl_by_position) == bins]
    curves = [
        _curve(r, [float(c) for c in centres], list(r.kl_by_position), i, r is shipped)
        for i, r in enumerate(drawn)
    ]
    made = figure(
        curves,
        axis("position in the sequence, tokens", rangemode="tozero"),
        axis("mean KL, nats per token", rangemode="tozero"),
        height=320,
    )
    first, last = shipped.kl_by_position[0], shipped.kl_by_position[-1]
    quarter = shipped.kl_by_position[bins // 4 :]
    steady = max(quarter) < 1.3 * min(quarter) if min(quarter) > 0 else False
    if first > 1.3 * last > 0:
        words = f"{number(first / last)} times as high at the start as at the end"
    elif last > 1.3 * first > 0:
        words = f"{number(last / first)} times as high at the end as at the start"
    else:
        words = "about the same at the start and at the end"
    caption = (
        f"KL is {words}{'; after the first quarter it is steady' if steady and first > 1.3 * last else ''}."
    )
    title = f"Along the sequence, {plural(bins, 'bin')}"
    return (Chart("kl-position", title, (View("", caption, made),)),)
