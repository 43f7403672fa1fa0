"""The sections of a report, in the order of the page. A new one is a file, a template and a line here.

A diagnosis and a recovery share the page: each leaves its own records, and sections without are left out.
"""

from collections.abc import Callable

from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.sections import (
    advice,
    attribution,
    bench,
    bisection,
    calibration,
    calibration_coverage,
    candidate,
    differences,
    layers,
    lint,
    metrics,
    outliers,
    repair,
    reproduce,
    rounding,
    sensitivity,
    split,
    sweep,
    tasks,
    text_errors,
    tradeoff,
    verdict,
)

SECTIONS: dict[str, Callable[[RunRecords], Section | None]] = {
    "candidate": candidate.build,
    "verdict": verdict.build,
    "lint": lint.build,
    "differences": differences.build,
    "attribution": attribution.build,
    "bisection": bisection.build,
    "split": split.build,
    "repair": repair.build,
    "calibration": calibration.build,
    "calibration-coverage": calibration_coverage.build,
    "bench": bench.build,
    "advice": advice.build,
    "metrics": metrics.build,
    "tasks": tasks.build,
    "layers": layers.build,
    "tradeoff": tradeoff.build,
    "sensitivity": sensitivity.build,
    "outliers": outliers.build,
    "sweep": sweep.build,
    "text-errors": text_errors.build,
    "rounding": rounding.build,
    "reproduce": reproduce.build,
}
