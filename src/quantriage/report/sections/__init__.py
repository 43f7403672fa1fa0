"""The sections of a report, in the order of the page. A new one is a file, a template and a line here."""

from collections.abc import Callable

from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.sections import (
    layers,
    metrics,
    reproduce,
    rounding,
    sensitivity,
    text_errors,
    tradeoff,
    verdict,
)

SECTIONS: dict[str, Callable[[RunRecords], Section | None]] = {
    "verdict": verdict.build,
    "metrics": metrics.build,
    "layers": layers.build,
    "tradeoff": tradeoff.build,
    "sensitivity": sensitivity.build,
    "text-errors": text_errors.build,
    "rounding": rounding.build,
    "reproduce": reproduce.build,
}
