from quantriage.errors import QuantriageError as QuantriageError
from quantriage.report.render import render as render_report
from quantriage.workflows.advise import advise as advise
from quantriage.workflows.advise_options import AdviseOptions as AdviseOptions
from quantriage.workflows.bench import bench as bench
from quantriage.workflows.bench_options import BenchOptions as BenchOptions
from quantriage.workflows.calibration_build import build as build_calibration
from quantriage.workflows.calibration_check import check_set as check_calibration
from quantriage.workflows.calibration_compare import compare_sets as compare_calibration
from quantriage.workflows.calibration_options import BuildOptions as CalibrationBuildOptions
from quantriage.workflows.calibration_options import CheckOptions as CalibrationCheckOptions
from quantriage.workflows.calibration_options import CompareSetsOptions as CalibrationCompareOptions
from quantriage.workflows.evaluate import evaluate as evaluate_model
from quantriage.workflows.opened import open_model as open_model
from quantriage.workflows.options import EvaluateOptions as EvaluateOptions
from quantriage.workflows.options import PlanOptions as PlanOptions
from quantriage.workflows.options import QuantizeOptions as QuantizeOptions
from quantriage.workflows.options import RecoverOptions as RecoverOptions
from quantriage.workflows.options import SensitivityOptions as SensitivityOptions
from quantriage.workflows.outliers import outliers as outliers
from quantriage.workflows.outliers_options import OutliersOptions as OutliersOptions
from quantriage.workflows.plan import plan as make_plan
from quantriage.workflows.quantize import quantize as quantize
from quantriage.workflows.recover import recover as recover
from quantriage.workflows.sensitivity import sensitivity as sensitivity
from quantriage.workflows.sweep import sweep as sweep
from quantriage.workflows.sweep_options import SweepOptions as SweepOptions

__version__: str
__all__ = [
    "AdviseOptions",
    "BenchOptions",
    "CalibrationBuildOptions",
    "CalibrationCheckOptions",
    "CalibrationCompareOptions",
    "EvaluateOptions",
    "OutliersOptions",
    "PlanOptions",
    "QuantizeOptions",
    "QuantriageError",
    "RecoverOptions",
    "SensitivityOptions",
    "SweepOptions",
    "__version__",
    "advise",
    "bench",
    "build_calibration",
    "check_calibration",
    "compare_calibration",
    "evaluate_model",
    "make_plan",
    "open_model",
    "outliers",
    "quantize",
    "recover",
    "render_report",
    "sensitivity",
    "sweep",
]
