"""Round to nearest: no calibration needed, the baseline that every other method must beat."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from quantriage.methods.inspection import inspect_inputs
from quantriage.methods.objective import loss_error, share
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
        return self.quantize_many([weight], statistics, schemes)[0]

    def quantize_many(
        self, weights: Sequence[Tensor], statistics: SiteStatistics, schemes: Sequence[Scheme]
    ) -> tuple[tuple[MethodResult, ...], ...]:
        """Nothing is shared between weights, so one after another."""
        inspect_inputs(weights, statistics, schemes)
        found = []
        for number, weight in enumerate(weights):
            outputs = statistics.outputs_of(number)
            total = loss_error(weight, statistics.hessian, outputs)
            results = []
            for scheme in schemes:
                quantized = quantize(weight, scheme, choose_qparams(weight, scheme, self.search))
                error = loss_error(quantized.dequantize().sub_(weight), statistics.hessian, outputs)
                results.append(MethodResult(quantized, 0.0, share(error, total), ()))
            found.append(tuple(results))
        return tuple(found)
