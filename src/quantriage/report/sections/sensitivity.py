"""Which sites cost most, what to do about them, and how far the rungs of the ladder agree."""

from dataclasses import dataclass

from quantriage.report.base_scheme import FISHER, LADDER, SWAP, BaseSensitivity, Rung, base_sensitivity
from quantriage.report.chart import INK, PRIMARY, Chart, View, axis, figure, line, log_axis, points
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.site_names import short_sites
from quantriage.report.wording import chart_text, median, number, percent, plural, sentence, tooltip

TOP = 20


@dataclass(frozen=True)
class Ranked:
    """A line of the table of the most sensitive sites."""

    rank: int
    site: str
    category: str
    value: str
    share: str
    recommendation: str


@dataclass(frozen=True)
class Agreement:
    """Rank correlation between two rungs at one scheme."""

    scheme: str
    first: str
    second: str
    spearman: str
    sites: int


@dataclass(frozen=True)
class SensitivityContent:
    """The tables of the section."""

    unit: str
    ranked: tuple[Ranked, ...]
    agreements: tuple[Agreement, ...]
    agreement_caption: str


def build(records: RunRecords) -> Section | None:
    """From the sensitivities; left out without."""
    base = base_sensitivity(records)
    if base is None:
        return None
    values = base.values(base.best)
    ranked = sorted(values, key=lambda name: -values[name])[:TOP]
    total = sum(values.values())
    charts = [_bars(records, base, ranked, values)]
    if SWAP in base.rungs and FISHER in base.rungs:
        charts.append(_scatter(records, base))
    lead = (
        f"{sentence(base.best.title)} of one site quantized alone with {base.scheme}, "
        f"{'all others in full precision' if base.best.additive else 'from the weights alone'}."
    )
    content = SensitivityContent(
        unit=f"{base.best.title}, {base.best.unit}",
        ranked=tuple(
            _ranked(records, name, rank, values, total) for rank, name in enumerate(ranked, start=1)
        ),
        agreements=_agreements(records),
        agreement_caption=_agreement_caption(records),
    )
    return Section("sensitivity", "Which layers hurt", lead, content, tuple(charts))


def _ranked(records: RunRecords, name: str, rank: int, values: dict[str, float], total: float) -> Ranked:
    diagnosis = next((d for d in records.diagnosis if d.site == name), None)
    site = records.site_by_name.get(name)
    return Ranked(
        rank=rank,
        site=name,
        category=diagnosis.category if diagnosis else site.category if site else "",
        value=number(values[name]),
        share=percent(values[name] / total) if total > 0 else "–",
        recommendation=diagnosis.recommendation if diagnosis else "",
    )


def _bars(records: RunRecords, base: BaseSensitivity, ranked: list[str], values: dict[str, float]) -> Chart:
    shorts = short_sites(records.sites)
    categories = {d.site: d.category for d in records.diagnosis}
    upward = ranked[::-1]  # plotly draws the first bar at the bottom
    bars: dict[str, object] = {
        "type": "bar",
        "orientation": "h",
        "x": [values[name] for name in upward],
        "y": [f"{chart_text(shorts.get(name, name))}  " for name in upward],
        "customdata": [
            tooltip([name, f"{number(values[name])} {base.best.unit}", categories.get(name, "")])
            for name in upward
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {"color": PRIMARY, "cornerradius": 3},
    }
    drawn = figure(
        [bars],
        axis(base.best.title, nticks=6),
        axis("", type="category", tickfont={"size": 12}),
        height=80 + 22 * len(ranked),
        bargap=0.28,
        showlegend=False,
    )
    return Chart(
        "top-sites",
        f"The {len(ranked)} most sensitive sites",
        (View("Top", _top_caption(values, ranked, base), drawn),),
    )


def _top_caption(values: dict[str, float], ranked: list[str], base: BaseSensitivity) -> str:
    if not ranked:
        return "No site was measured."
    total, first = sum(values.values()), ranked[0]
    middle = median(values.values())
    times = f", {number(values[first] / middle)} times the median site" if middle > 0 else ""
    text = f"{first} is the most sensitive{times}"
    if not base.best.additive or total <= 0:
        return text + "."
    top = sum(values[name] for name in ranked)
    return (
        f"{text}; these {len(ranked)} of {len(values):,} sites carry {percent(top / total)} "
        f"of a total of {number(total)}."
    )


def _scatter(records: RunRecords, base: BaseSensitivity) -> Chart:
    """Fisher against swap KL, both logarithmic, with the line of equality."""
    shorts = short_sites(records.sites)
    fisher, swap = base.values(FISHER), base.values(SWAP)
    names = [name for name in fisher if name in swap and fisher[name] > 0 and swap[name] > 0]
    if len(names) < 3:
        return Chart(
            "rungs",
            "",
            (
                View(
                    "",
                    "Too few sites have both rungs for a picture.",
                    figure([], axis(""), axis(""), height=80),
                ),
            ),
        )
    xs, ys = [fisher[n] for n in names], [swap[n] for n in names]
    marks = points(
        xs,
        ys,
        [tooltip([shorts.get(n, n), f"Fisher {number(fisher[n])}, swap {number(swap[n])}"]) for n in names],
        {"size": 8, "color": PRIMARY, "opacity": 0.65},
        "sites",
    )
    ends = [min(xs + ys), max(xs + ys)]
    drawn = figure(
        [line(ends, ends, "equal", {"color": INK, "width": 1, "dash": "dot"}), marks],
        log_axis("predicted KL (Fisher)", xs),
        log_axis("measured KL (swap)", ys),
        height=400,
        showlegend=False,
    )
    ratios = [measured / predicted for predicted, measured in zip(xs, ys, strict=True)]
    within = sum(0.5 <= ratio <= 2 for ratio in ratios) / len(names)
    caption = (
        f"Fisher is within a factor of two of the measured KL for {percent(within)} of {len(names):,} sites "
        f"at {base.scheme}; measured over predicted is {number(median(ratios))} in the middle."
    )
    return Chart("rungs", "Prediction against measurement, site by site", (View("", caption, drawn),))


def _rung_title(name: str) -> str:
    titles: dict[str, Rung] = {rung.name: rung for rung in LADDER}
    return titles[name].title if name in titles else name


def _agreements(records: RunRecords) -> tuple[Agreement, ...]:
    return tuple(
        Agreement(c.scheme, _rung_title(c.first), _rung_title(c.second), f"{c.spearman:.2f}", c.sites)
        for c in records.correlations
    )


def _agreement_caption(records: RunRecords) -> str:
    if not records.correlations:
        return ""
    best = max(records.correlations, key=lambda c: c.spearman)
    worst = min(records.correlations, key=lambda c: c.spearman)
    text = (
        f"{sentence(_rung_title(best.first))} ranks {plural(best.sites, 'site')} as "
        f"{_rung_title(best.second)} does with Spearman {best.spearman:.2f} at {best.scheme}"
    )
    if worst is best:
        return text + "."
    about = "says nothing about the order" if abs(worst.spearman) < 0.3 else f"reaches {worst.spearman:.2f}"
    if about.startswith("says"):
        about += f" ({worst.spearman:.2f})"
    return text + f"; {_rung_title(worst.first)} {about} at {worst.scheme}."
