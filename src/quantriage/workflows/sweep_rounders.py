"""Ways to round the layers of one input that a sweep can vary, behind one call.

A registered method knows only Hessians and returns plain weights; scaling methods need more of the input and
return a scale beside the weight. Both fit this call, so the loop over blocks is written once. Settings are
fields of small frozen dataclasses: equal ones round all their schemes in one call and share a factorization.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from quantriage.methods.awq import AwqOptions, ScaledWeight, awq
from quantriage.methods.input_statistics import InputStatistics
from quantriage.methods.protocol import Method, MethodFinding, SiteStatistics
from quantriage.methods.registry import two_sided
from quantriage.methods.smoothquant import smooth
from quantriage.numerics.choose_qparams import Search, choose_qparams
from quantriage.numerics.clipping import ratio_qparams
from quantriage.numerics.mse import Mse
from quantriage.numerics.rounding import quantize
from quantriage.numerics.schemes import Scheme
from quantriage.numerics.weighted_mse import WeightedMse

Needs = Literal["nothing", "inputs", "loss"]
"""What must be gathered: nothing, plain statistics of the inputs (a forward pass), or Hessians weighted by
what the loss reads (a forward and a backward pass)."""


@dataclass(frozen=True, eq=False)
class Rounded:
    """One weight in one scheme. chosen: what the rounder picked for itself, such as AWQ's alpha."""

    weight: ScaledWeight
    chosen: float | None = None
    findings: tuple[MethodFinding, ...] = ()


class Rounder(Protocol):
    """Rounds the weights of one input."""

    @property
    def name(self) -> str:
        """The method, for tables."""
        ...

    @property
    def needs(self) -> Needs:
        """What it cannot do without."""
        ...

    def round(
        self, weights: Sequence[Tensor], statistics: InputStatistics | None, schemes: Sequence[Scheme]
    ) -> list[list[Rounded]]:
        """By scheme, then by weight [out_k, in]."""
        ...


@dataclass(frozen=True)
class AtRatio:
    """Nearest codes, every group at one share of its range; 1 is plain rounding."""

    ratio: float = 1.0
    name: str = "rtn"
    needs: Needs = "nothing"

    def round(
        self, weights: Sequence[Tensor], statistics: InputStatistics | None, schemes: Sequence[Scheme]
    ) -> list[list[Rounded]]:
        """By scheme, then by weight."""
        del statistics
        return [[_plain(quantize_at(weight, scheme, self.ratio)) for weight in weights] for scheme in schemes]


def quantize_at(weight: Tensor, scheme: Scheme, ratio: float) -> ScaledWeight:
    """Nearest codes of weight [out, in] at a share of each group's range."""
    return ScaledWeight(quantize(weight, scheme, ratio_qparams(weight, scheme, ratio)), None)


@dataclass(frozen=True)
class Searched:
    """Nearest codes, the range of each group searched; by the Hessian's diagonal if `weighted`."""

    weighted: bool
    name: str = "rtn, ranges searched"

    @property
    def needs(self) -> Needs:
        """Inputs if weighted."""
        return "inputs" if self.weighted else "nothing"

    def round(
        self, weights: Sequence[Tensor], statistics: InputStatistics | None, schemes: Sequence[Scheme]
    ) -> list[list[Rounded]]:
        """By scheme, then by weight."""
        search: Search = Mse()
        if self.weighted:
            assert statistics is not None
            search = WeightedMse(statistics.hessian.diagonal())
        return [
            [
                _plain(ScaledWeight(quantize(w, scheme, choose_qparams(w, scheme, search)), None))
                for w in weights
            ]
            for scheme in schemes
        ]


@dataclass(frozen=True)
class ByMethod:
    """A method of the registry, or one with other options."""

    name: str
    method: Method
    needs: Needs

    def round(
        self, weights: Sequence[Tensor], statistics: InputStatistics | None, schemes: Sequence[Scheme]
    ) -> list[list[Rounded]]:
        """By scheme, then by weight."""
        assert statistics is not None
        outputs = statistics.outputs if two_sided(self.method) else ()
        known = SiteStatistics(statistics.hessian, statistics.tokens, outputs)
        by_weight = self.method.quantize_many(weights, known, schemes)
        return [
            [Rounded(ScaledWeight(of[i].quantized, None), None, of[i].findings) for of in by_weight]
            for i in range(len(schemes))
        ]


@dataclass(frozen=True)
class ByAwq:
    """AWQ with fixed or searched exponents."""

    options: AwqOptions
    name: str = "awq"
    needs: Needs = "inputs"

    def round(
        self, weights: Sequence[Tensor], statistics: InputStatistics | None, schemes: Sequence[Scheme]
    ) -> list[list[Rounded]]:
        """By scheme, then by weight."""
        assert statistics is not None
        found = [awq(weights, statistics, scheme, self.options) for scheme in schemes]
        return [[Rounded(weight, result.alpha) for weight in result.weights] for result in found]


@dataclass(frozen=True)
class BySmoothing:
    """SmoothQuant at one alpha; None rounds without a scale."""

    alpha: float | None
    name: str = "smoothquant"
    needs: Needs = "inputs"

    def round(
        self, weights: Sequence[Tensor], statistics: InputStatistics | None, schemes: Sequence[Scheme]
    ) -> list[list[Rounded]]:
        """By scheme, then by weight."""
        assert statistics is not None
        found = [smooth(weights, statistics, scheme, self.alpha) for scheme in schemes]
        return [[Rounded(weight, self.alpha) for weight in of] for of in found]


def _plain(weight: ScaledWeight) -> Rounded:
    return Rounded(weight)
