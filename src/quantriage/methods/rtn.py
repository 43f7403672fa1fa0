"""Round to nearest: no calibration needed, the baseline that every other method must beat."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from quantriage.methods.inspection import inspect_inputs
from quantriage.methods.objective import quadratic, relative_objective
from quantriage.methods.protocol import MethodResult, SiteStatistics
from quantriage.numerics.choose_qparams import Search, choose_qparams
from quantriage.numerics.min_max import MinMax
from quantriage.numerics.rounding import quantize
from quantriage.numerics.schemes import Scheme


@dataclass(frozen=True)
class Rtn:
    """Nearest codes with scales by `search`. The Hessian is used for the reported objective alone."""

    search: Search = field(default_factory=MinMax)

    def quantize(
        self, weight: Tensor, statistics: SiteStatistics, schemes: Sequence[Scheme]
    ) -> tuple[MethodResult, ...]:
        """Weight [out, in] in every scheme. Memory: two float32 copies of the weight."""
        inspect_inputs([weight], statistics, schemes)
        total = quadratic(weight, statistics.hessian)
        results = []
        for scheme in schemes:
            quantized = quantize(weight, scheme, choose_qparams(weight, scheme, self.search))
            error = quadratic(quantized.dequantize().sub_(weight), statistics.hessian)
            results.append(MethodResult(quantized, 0.0, relative_objective(error, total), ()))
        return tuple(results)

    def quantize_many(
        self, weights: Sequence[Tensor], statistics: SiteStatistics, schemes: Sequence[Scheme]
    ) -> tuple[tuple[MethodResult, ...], ...]:
        """Nothing is shared between weights, so one after another."""
        return tuple(self.quantize(weight, statistics, schemes) for weight in weights)
