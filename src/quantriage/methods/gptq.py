"""GPTQ (arXiv:2210.17323) with static groups: each rounding error is fed to the columns not yet rounded.

Scales are searched beforehand on the original weight, columns are visited in falling order of the Hessian's
diagonal (act-order), codes and scales come back in natural order: stock kernels load the result without a
g_idx. The search weighs a column by its pivot, what its error costs *after* the later columns have made up
for what they can. Against the Hessian's diagonal, the usual weight, that takes 9% off the output error on
held-out text at 4 bits in groups of 64, at no cost; two sweeps of `refinement` take off another 5%.

Rows are independent, so all rows of all sites of one input, under all schemes, run side by side. Scales
re-computed from the compensated weight, as in the original, were rejected as default: they forbid act-order
without a g_idx and lose to the search; `GptqOptions.plain()` keeps them as the baseline.

Peak memory: two copies of the Hessian, the input and its factor; four float32 copies of the stacked weights,
a byte per code and scheme, and about eight blocks of 16 MB.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

from quantriage.errors import UsageError
from quantriage.methods.compensated_groups import round_with_group_scales
from quantriage.methods.hessian_factor import HessianFactor, factorize
from quantriage.methods.inspection import inspect_inputs
from quantriage.methods.nearest_rows import keep_nearest_rows, measured
from quantriage.methods.objective import quadratic, relative_objective
from quantriage.methods.protocol import MethodFinding, MethodResult, SiteStatistics
from quantriage.methods.static_groups import Refinement, round_with_fixed_scales
from quantriage.numerics.choose_qparams import Search, choose_qparams
from quantriage.numerics.min_max import MinMax, min_max_qparams
from quantriage.numerics.mse import Mse
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import PerGroup, Scheme
from quantriage.numerics.weighted_mse import WeightedMse

Scales = Literal["pivots", "diagonal", "mse", "min-max", "compensated"]


@dataclass(frozen=True)
class GptqOptions:
    """How GPTQ runs.

    scales: searched on the original weight with the factor's pivots or the Hessian's diagonal as importance,
    or without ("mse", "min-max"); "compensated" takes min and max of the weight as compensated when its group
    is reached, and so needs the natural order.
    damping: added to the Hessian's diagonal, as a part of its mean; raised tenfold until it factors.
    refine_sweeps: passes over codes and scales afterwards; 0 leaves what the feedback gave.
    keep_nearest: rows that plain rounding serves better keep it.
    """

    act_order: bool = True
    damping: float = 0.01
    scales: Scales = "pivots"
    refine_sweeps: int = 2
    keep_nearest: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.damping < float("inf"):
            raise UsageError(f"damping {self.damping}: expected a positive number, usually 0.01")
        if self.refine_sweeps < 0:
            raise UsageError(f"refine_sweeps {self.refine_sweeps}: expected 0 or more")
        if self.scales == "compensated" and (self.act_order or self.refine_sweeps):
            raise UsageError(
                "compensated scales need the natural order and no sweeps: use GptqOptions.plain()"
            )

    @staticmethod
    def plain() -> "GptqOptions":
        """The original algorithm, as a baseline: natural order, min-max scales at each group's start."""
        return GptqOptions(act_order=False, scales="compensated", refine_sweeps=0, keep_nearest=False)


@dataclass(frozen=True)
class Gptq:
    """GPTQ under `options`; see the module's docstring."""

    options: GptqOptions = GptqOptions()

    def quantize(
        self, weight: Tensor, statistics: SiteStatistics, schemes: Sequence[Scheme]
    ) -> tuple[MethodResult, ...]:
        """Weight [out, in], float32, in every scheme, in order."""
        return self.quantize_many([weight], statistics, schemes)[0]

    def quantize_many(
        self, weights: Sequence[Tensor], statistics: SiteStatistics, schemes: Sequence[Scheme]
    ) -> tuple[tuple[MethodResult, ...], ...]:
        """Several weights [out_k, in] of one input: for every weight, all schemes."""
        inspect_inputs(weights, statistics, schemes)
        if not weights or not schemes:
            return tuple(() for _ in weights)
        hessian = statistics.hessian
        rounded, damping, findings = self._round(weights, hessian, schemes)
        results = []
        for site, weight in enumerate(weights):
            total = quadratic(weight, hessian)
            of_weight = []
            for of_scheme in rounded:
                candidate = measured(weight, of_scheme[site], hessian)
                own = findings
                if self.options.keep_nearest:
                    candidate, fallback = keep_nearest_rows(weight, hessian, candidate)
                    own = findings + fallback
                objective = relative_objective(candidate.error, total)
                of_weight.append(MethodResult(candidate.quantized, damping, objective, own))
            results.append(tuple(of_weight))
        return tuple(results)

    def _round(
        self, weights: Sequence[Tensor], hessian: Tensor, schemes: Sequence[Scheme]
    ) -> tuple[list[list[QuantizedTensor]], float, tuple[MethodFinding, ...]]:
        """Quantized weights by scheme and site, the damping used, findings about the Hessian."""
        importance = hessian.diagonal()
        columns = importance.shape[0]
        # Visits start at the last position.
        order = importance.argsort(stable=True) if self.options.act_order else torch.arange(columns).flip(0)
        factor = factorize(hessian, order, self.options.damping)
        findings = _findings(hessian, factor)
        refinement = Refinement(hessian, factor.damping_added, self.options.refine_sweeps)
        if self.options.scales == "compensated":
            rounded = [_compensated(weights, factor, scheme, refinement) for scheme in schemes]
        else:
            search = _search(self.options.scales, factor, importance)
            qparams = [[choose_qparams(weight, scheme, search) for weight in weights] for scheme in schemes]
            rounded = round_with_fixed_scales(weights, factor, schemes, qparams, refinement)
        return rounded, factor.damping, findings


def _search(
    scales: Literal["pivots", "diagonal", "mse", "min-max"], factor: HessianFactor, importance: Tensor
) -> Search:
    match scales:
        case "pivots":
            return WeightedMse(factor.pivots)
        case "diagonal":
            return WeightedMse(importance)
        case "mse":
            return Mse()
        case "min-max":
            return MinMax()
    assert_never(scales)


def _compensated(
    weights: Sequence[Tensor], factor: HessianFactor, scheme: Scheme, refinement: Refinement
) -> list[QuantizedTensor]:
    """Codes with scales found at each group's start; without groups that is the original weight's range."""
    if not isinstance(scheme.granularity, PerGroup):
        qparams = [min_max_qparams(weight, scheme) for weight in weights]
        return round_with_fixed_scales(weights, factor, [scheme], [qparams], refinement)[0]
    return [round_with_group_scales(weight, factor, scheme) for weight in weights]


def _findings(hessian: Tensor, factor: HessianFactor) -> tuple[MethodFinding, ...]:
    findings = []
    dead = int((hessian.diagonal() == 0).sum())
    if dead:
        text = f"{dead} of {hessian.shape[0]} inputs were zero on all calibration tokens: rounded to nearest"
        findings.append(MethodFinding("info", "dead-columns", text))
    if factor.raised:
        text = (
            f"damping raised to {factor.damping:g} of the Hessian's mean diagonal before it could be "
            f"factored: more calibration tokens help"
        )
        findings.append(MethodFinding("warning", "damping-raised", text))
    return tuple(findings)
