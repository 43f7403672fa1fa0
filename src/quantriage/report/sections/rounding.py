"""What the method did to each site, where it fell back, and every finding of the run in words."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from quantriage.records.types import Finding, QuantizedSite, Severity
from quantriage.report.chart import INK, PRIMARY, Chart, View, axis, figure, log_axis, points
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.site_names import short_sites
from quantriage.report.wording import duration, median, number, percent, plural, tooltip

_ORDER: tuple[tuple[Severity, str], ...] = (("error", "Errors"), ("warning", "Warnings"), ("info", "Notes"))


@dataclass(frozen=True)
class FindingGroup:
    """Findings with one code: the first ones in full, the rest behind a fold."""

    severity: Severity
    code: str
    first: tuple[str, ...]
    more: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class Damped:
    """A site whose Hessian needed more than the usual damping."""

    site: str
    damping: str
    gain: str


@dataclass(frozen=True)
class RoundingContent:
    """Findings by severity, and the sites that were damped more than most."""

    groups: tuple[tuple[str, tuple[FindingGroup, ...]], ...]
    damped: tuple[Damped, ...]
    damped_more: int
    damped_caption: str


def build(records: RunRecords) -> Section | None:
    """From the quantized sites and all findings; left out if there are neither."""
    findings = _all_findings(records)
    if not records.quantized and not findings:
        return None
    damped = _damped(records.quantized)
    content = RoundingContent(
        groups=_grouped(findings),
        damped=damped[:10],
        damped_more=max(0, len(damped) - 10),
        damped_caption=_damped_caption(damped, records.quantized),
    )
    return Section(
        "rounding", "What the method did", _lead(records.quantized, findings), content, _gain_chart(records)
    )


def _lead(quantized: tuple[QuantizedSite, ...], findings: list[Finding]) -> str:
    said = plural(len(findings), "finding")
    if not quantized:
        return f"{said}."
    seconds = duration(sum(q.seconds for q in quantized))
    methods = " and ".join(sorted({q.method for q in quantized}))
    return (
        f"{plural(len(quantized), 'site')} rounded by {methods} in {seconds} "
        f"on {max(q.tokens for q in quantized):,} calibration tokens; {said}."
    )


def _all_findings(records: RunRecords) -> list[Finding]:
    """Of the run, the plan and the sites; the same finding is often recorded in two places."""
    every: list[Finding] = []
    every += records.summary.findings if records.summary else ()
    every += records.plan.findings if records.plan else ()
    for site in records.quantized:
        every += site.findings
    return list({(f.severity, f.code, f.text): f for f in every}.values())


def _grouped(findings: Iterable[Finding]) -> tuple[tuple[str, tuple[FindingGroup, ...]], ...]:
    by_code: dict[tuple[Severity, str], list[str]] = {}
    for finding in findings:
        named = finding.site is None or finding.site in finding.text
        text = finding.text if named else f"{finding.site}: {finding.text}"
        by_code.setdefault((finding.severity, finding.code), []).append(text)
    result = []
    for severity, title in _ORDER:
        groups = tuple(
            FindingGroup(severity, code, tuple(texts[:3]), tuple(texts[3:]), len(texts))
            for (level, code), texts in by_code.items()
            if level == severity
        )
        if groups:
            result.append((title, groups))
    return tuple(result)


def _usual_damping(quantized: tuple[QuantizedSite, ...]) -> float:
    return Counter(q.damping for q in quantized).most_common(1)[0][0] if quantized else 0.0


def _damped(quantized: tuple[QuantizedSite, ...]) -> tuple[Damped, ...]:
    usual = _usual_damping(quantized)
    return tuple(
        Damped(
            q.site, percent(q.damping), number(q.objective / q.rtn_objective) if q.rtn_objective > 0 else "–"
        )
        for q in sorted(quantized, key=lambda q: -q.damping)
        if q.damping > usual
    )


def _damped_caption(damped: tuple[Damped, ...], quantized: tuple[QuantizedSite, ...]) -> str:
    if not quantized:
        return ""
    usual = percent(_usual_damping(quantized))
    if not damped:
        return f"Every site was rounded with the usual damping, {usual} of the Hessian's mean diagonal."
    return (
        f"{plural(len(damped), 'site')} of {len(quantized):,} needed more than the usual damping of {usual} "
        "of the Hessian's mean diagonal."
    )


def _gain_chart(records: RunRecords) -> tuple[Chart, ...]:
    """Each site's output error under the method against that under plain rounding."""
    shown = [q for q in records.quantized if q.objective > 0 and q.rtn_objective > 0]
    if len(shown) < 2:
        return ()
    shorts = short_sites(records.sites)
    ratios = [q.objective / q.rtn_objective for q in shown]
    blocks = [records.site_by_name[q.site].block if q.site in records.site_by_name else 0 for q in shown]
    marks = points(
        [float(block) for block in blocks],
        ratios,
        [
            tooltip(
                [
                    shorts.get(q.site, q.site),
                    f"{q.method} {number(q.objective)}, RTN {number(q.rtn_objective)}",
                    f"{q.scheme}, damping {percent(q.damping)}, {q.tokens:,} tokens",
                ]
            )
            for q in shown
        ],
        {"size": 8, "color": PRIMARY, "opacity": 0.6},
        "sites",
    )
    one = {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": 1,
        "y1": 1,
        "line": {"color": INK, "width": 1, "dash": "dot"},
    }
    drawn = figure(
        [marks],
        axis("block"),
        log_axis("output error, share of RTN's", [*ratios, 1.0]),
        height=360,
        showlegend=False,
        shapes=[one],
    )
    return (
        Chart(
            "rounding-gain", "Output error against plain rounding", (View("", _gain_caption(shown), drawn),)
        ),
    )


def _gain_caption(shown: list[QuantizedSite]) -> str:
    ratio = {q.site: q.objective / q.rtn_objective for q in shown}
    better = sum(value < 1 for value in ratio.values())
    worst = max(ratio, key=lambda name: ratio[name])
    text = (
        f"Rounding lowered the output error at {better:,} of {plural(len(ratio), 'site')}, to "
        f"{percent(median(ratio.values()))} of RTN's in the middle"
    )
    return text + f"; least at {worst}, {percent(ratio[worst])}."
