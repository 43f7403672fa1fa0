"""A section of the report: a title, a template, the plain content it shows and its charts.

The content is a frozen dataclass of ready words, so that templates only place things: no arithmetic, no
formatting and no decisions in jinja, where nothing is typed.
"""

from dataclasses import dataclass

from quantriage.report.chart import Chart


@dataclass(frozen=True)
class Section:
    """One part of the page. `name` is its anchor and its template (`<name>.html.j2`)."""

    name: str
    title: str
    lead: str
    content: object
    charts: tuple[Chart, ...] = ()
    headed: bool = True  # a verdict is its own heading
