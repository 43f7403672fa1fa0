"""Records of a run folder to one HTML file that needs nothing else: no network, no folder beside it.

Every name in it comes from a checkpoint or a text and is hostile until escaped: jinja escapes what stands in
the page, `_script_json` what stands in a script, and a Content-Security-Policy in the page itself forbids
every load and every script but the two whose hashes it names. Rejected: plotly's own to_html, which gives
one figure, fixed colours and no policy.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import quantriage
from quantriage.records.atomic import write_bytes
from quantriage.records.run_dir import REPORT
from quantriage.report.plotly_bundle import plotly_bundle, script_hash
from quantriage.report.run_records import RunRecords, read_records
from quantriage.report.section import Section
from quantriage.report.sections import SECTIONS

_FOLDER = Path(__file__).parent / "templates"


def render(run_dir: Path) -> Path:
    """Write `report.html` into the run folder from its records and return its path.

    Sections without records are left out. Raises QuantriageError if there is no record or an invalid one.
    """
    records = read_records(run_dir)
    sections = [section for build in SECTIONS.values() if (section := build(records)) is not None]
    path = run_dir / REPORT
    write_bytes(path, page(records, sections).encode("utf-8", errors="replace"))
    return path


def page(records: RunRecords, sections: list[Section]) -> str:
    """The HTML of the given sections."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    bundle = plotly_bundle()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{script_hash(script.encode())}' 'sha256-{bundle.sha256}'"
    )
    charts = {chart.name: [view.figure for view in chart.views] for s in sections for chart in s.charts}
    return environment.get_template("page.html.j2").render(
        policy=policy,
        heading=heading(records),
        sections=sections,
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        charts=_script_json(charts),
        plotly=bundle.packed,
        version=quantriage.__version__,
    )


@dataclass(frozen=True)
class Heading:
    """What the page is about, and one line beneath it."""

    title: str
    beneath: str


def heading(records: RunRecords) -> Heading:
    """From the run's summary, else from the records of a diagnosis."""
    if records.summary:
        target = f" · for {records.summary.target}" if records.summary.target else ""
        return Heading(
            records.summary.title, f"{records.summary.model}{target}" if records.summary.model else ""
        )
    candidate, reference = records.names
    if candidate is None:
        return Heading("quantriage report", "")
    layout = f"{records.layout}, " if records.layout else ""
    beneath = f"held against {reference}" if reference else "looked at alone, without a reference"
    return Heading(candidate, f"{layout}{beneath}")


def _script_json(content: object) -> Markup:
    """JSON that cannot end or open a tag, a comment or a line of script, whatever its strings hold."""
    text = msgspec.json.encode(content).decode("utf-8")
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
