"""quantriage: find where a quantized language model lost its quality, fix it, and prove the fix.

The verbs of the command line as typed functions, each taking its options as one frozen dataclass. Names are
looked up when they are first used, so that `import quantriage` costs no torch; type checkers read them from
`__init__.pyi`, for imports written here, even for checkers alone, would make every room depend on all others.

Two verbs have longer names here than on the command line, because `quantriage.plan` and
`quantriage.evaluate` are packages: a function of the same name would be replaced by the package as soon as
something imported it.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_OPTIONS = "quantriage.workflows.options"
_CALIBRATION = "quantriage.workflows.calibration_options"
_PLACES = {
    "AdviseOptions": ("quantriage.workflows.advise_options", "AdviseOptions"),
    "BenchOptions": ("quantriage.workflows.bench_options", "BenchOptions"),
    "CalibrationBuildOptions": (_CALIBRATION, "BuildOptions"),
    "CalibrationCheckOptions": (_CALIBRATION, "CheckOptions"),
    "CalibrationCompareOptions": (_CALIBRATION, "CompareSetsOptions"),
    "EvaluateOptions": (_OPTIONS, "EvaluateOptions"),
    "OutliersOptions": ("quantriage.workflows.outliers_options", "OutliersOptions"),
    "PlanOptions": (_OPTIONS, "PlanOptions"),
    "QuantizeOptions": (_OPTIONS, "QuantizeOptions"),
    "QuantriageError": ("quantriage.errors", "QuantriageError"),
    "RecoverOptions": (_OPTIONS, "RecoverOptions"),
    "SensitivityOptions": (_OPTIONS, "SensitivityOptions"),
    "SweepOptions": ("quantriage.workflows.sweep_options", "SweepOptions"),
    "build_calibration": ("quantriage.workflows.calibration_build", "build"),
    "check_calibration": ("quantriage.workflows.calibration_check", "check_set"),
    "compare_calibration": ("quantriage.workflows.calibration_compare", "compare_sets"),
    "advise": ("quantriage.workflows.advise", "advise"),
    "bench": ("quantriage.workflows.bench", "bench"),
    "evaluate_model": ("quantriage.workflows.evaluate", "evaluate"),
    "make_plan": ("quantriage.workflows.plan", "plan"),
    "open_model": ("quantriage.workflows.opened", "open_model"),
    "outliers": ("quantriage.workflows.outliers", "outliers"),
    "quantize": ("quantriage.workflows.quantize", "quantize"),
    "recover": ("quantriage.workflows.recover", "recover"),
    "render_report": ("quantriage.report.render", "render"),
    "sensitivity": ("quantriage.workflows.sensitivity", "sensitivity"),
    "sweep": ("quantriage.workflows.sweep", "sweep"),
}

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    """Import what a public name stands for (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'quantriage' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
