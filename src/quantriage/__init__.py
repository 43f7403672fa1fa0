"""quantriage: find where a quantized language model lost its quality, fix it, and prove the fix.

The verbs of the command line as typed functions, each taking its options as one frozen dataclass. Names are
looked up when they are first used, so that `import quantriage` costs no torch. Two verbs have longer names
here than on the command line, because `quantriage.plan` and `quantriage.evaluate` are packages: a function
of the same name would be replaced by the package as soon as something imported it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantriage.errors import QuantriageError
    from quantriage.report.render import render as render_report
    from quantriage.workflows.evaluate import evaluate as evaluate_model
    from quantriage.workflows.opened import open_model
    from quantriage.workflows.options import (
        EvaluateOptions,
        PlanOptions,
        QuantizeOptions,
        RecoverOptions,
        SensitivityOptions,
    )
    from quantriage.workflows.plan import plan as make_plan
    from quantriage.workflows.quantize import quantize
    from quantriage.workflows.recover import recover
    from quantriage.workflows.sensitivity import sensitivity

__version__ = "0.1.0"

__all__ = [
    "EvaluateOptions",
    "PlanOptions",
    "QuantizeOptions",
    "QuantriageError",
    "RecoverOptions",
    "SensitivityOptions",
    "__version__",
    "evaluate_model",
    "make_plan",
    "open_model",
    "quantize",
    "recover",
    "render_report",
    "sensitivity",
]

_PLACES = {
    "EvaluateOptions": ("quantriage.workflows.options", "EvaluateOptions"),
    "PlanOptions": ("quantriage.workflows.options", "PlanOptions"),
    "QuantizeOptions": ("quantriage.workflows.options", "QuantizeOptions"),
    "QuantriageError": ("quantriage.errors", "QuantriageError"),
    "RecoverOptions": ("quantriage.workflows.options", "RecoverOptions"),
    "SensitivityOptions": ("quantriage.workflows.options", "SensitivityOptions"),
    "evaluate_model": ("quantriage.workflows.evaluate", "evaluate"),
    "make_plan": ("quantriage.workflows.plan", "plan"),
    "open_model": ("quantriage.workflows.opened", "open_model"),
    "quantize": ("quantriage.workflows.quantize", "quantize"),
    "recover": ("quantriage.workflows.recover", "recover"),
    "render_report": ("quantriage.report.render", "render"),
    "sensitivity": ("quantriage.workflows.sensitivity", "sensitivity"),
}


def __getattr__(name: str) -> Any:
    """Import what a public name stands for (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'quantriage' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
