"""What the costliest units lose beside what the best rounding known here would lose in the same scheme.

The gap between the two marks is what could have been saved at no bytes: a hard layer has none, a layer done
badly a wide one. That is the question a ranking by KL alone leaves open.
"""

from collections.abc import Mapping, Sequence

from quantriage.records.diagnosis import UnitAttribution
from quantriage.report.chart import ACCENT, MUTED, PRIMARY, Chart, Trace, View, axis, figure, log_axis, points
from quantriage.report.sections.attribution_rows import kl_of, rank
from quantriage.report.wording import chart_text, clip, number, tooltip

_SHOWN = 14


def slack_chart(units: Sequence[UnitAttribution], shorts: Mapping[str, str]) -> list[Chart]:
    """The chart, or nothing where fewer than two units have both figures."""
    both = [u for u in rank(units) if (kl_of(u) or 0.0) > 0 and (u.optimal_kl or 0.0) > 0][:_SHOWN]
    if len(both) < 2:
        return []
    upward = both[::-1]  # plotly draws the first row at the bottom
    rows = [float(i) for i in range(len(upward))]
    actual = [kl_of(u) or 0.0 for u in upward]
    optimal = [u.optimal_kl or 0.0 for u in upward]
    tips = [
        tooltip([u.unit, f"KL {number(kl)}, best known rounding {number(best)}", u.judgement])
        for u, kl, best in zip(upward, actual, optimal, strict=True)
    ]
    marker = {"size": 11, "line": {"width": 1, "color": "var(--surface)"}}
    drawn = figure(
        [
            _gaps(actual, optimal, rows),
            points(optimal, rows, tips, marker | {"color": PRIMARY, "symbol": "diamond"}, "best known"),
            points(actual, rows, tips, marker | {"color": ACCENT}, "as it is"),
        ],
        log_axis("KL of the unit alone", actual + optimal),
        axis(
            "",
            tickvals=rows,
            ticktext=[f"{chart_text(clip(shorts.get(u.unit, u.unit), 24))}  " for u in upward],
            range=[-0.6, len(upward) - 0.4],
            tickfont={"size": 12},
        ),
        height=110 + 24 * len(upward),
    )
    title = "What the worst units lose, and what they had to"
    return [Chart("attribution-slack", title, (View("", _caption(both), drawn),))]


def _gaps(actual: Sequence[float], optimal: Sequence[float], rows: Sequence[float]) -> Trace:
    """One line for all gaps, broken between rows."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for kl, best, row in zip(actual, optimal, rows, strict=True):
        xs += [kl, best, None]
        ys += [row, row, None]
    style = {"color": MUTED, "width": 2}
    return {
        "type": "scatter",
        "mode": "lines",
        "x": xs,
        "y": ys,
        "line": style,
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _caption(both: Sequence[UnitAttribution]) -> str:
    ratio = {u.unit: (kl_of(u) or 0.0) / (u.optimal_kl or 1.0) for u in both}
    wide = [name for name, value in ratio.items() if value >= 2]
    shown = f"the {len(both)} costliest units"
    if not wide:
        return (
            f"None of {shown} loses twice what the best rounding known here would lose in its scheme: "
            "more bits would help, another rounding would not."
        )
    worst = max(wide, key=lambda name: ratio[name])
    lose = "loses" if len(wide) == 1 else "lose"
    return (
        f"{len(wide)} of {shown} {lose} at least twice what the best rounding known here would lose in the "
        f"same scheme, {worst} {number(ratio[worst])} times: that loss is not the price of the bits."
    )
