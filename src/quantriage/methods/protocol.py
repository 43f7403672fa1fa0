"""What a method is: weights and the statistics of their inputs in, quantized weights and findings out.

A method never sees a file, a name or a model. Sites with the same input share one Hessian and come in one
call, and so do all schemes under trial, because the costly parts (factorizing the Hessian, ordering the
columns) depend on neither. One call per site and scheme was rejected: it factorizes the same matrix again
and again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme


@dataclass(frozen=True)
class SiteStatistics:
    """What is known of a site's input. hessian: sum over tokens of weight_t * x_t x_t^T, float32 [in, in].

    Its scale is arbitrary; `tokens` says how many were seen. outputs: for each weight of the call, the second
    moment of the loss's gradients at its outputs, [n, n] for consecutive runs of its rows; empty: not known,
    and all rows count alike.
    """

    hessian: Tensor
    tokens: int
    outputs: tuple[tuple[Tensor, ...], ...] = ()

    def outputs_of(self, weight: int) -> tuple[Tensor, ...]:
        """Those of one weight of the call; empty if not known."""
        return self.outputs[weight] if self.outputs else ()


@dataclass(frozen=True)
class MethodFinding:
    """Something a person should know of one quantized weight; the caller adds the site's name."""

    severity: Literal["info", "warning"]
    code: str  # stable, kebab-case: "damping-raised", "dead-columns", "rows-fell-back"
    text: str


@dataclass(frozen=True)
class MethodResult:
    """One weight in one scheme. damping: what was added to the Hessian's diagonal, as a part of its mean.

    objective: tr(dW H dW^T) / tr(W H W^T), undamped, dW = W - quantized; 0 where the denominator is 0. Where
    the gradients at the outputs are known, both are tr(M dW H dW^T).
    """

    quantized: QuantizedTensor
    damping: float
    objective: float
    findings: tuple[MethodFinding, ...]


class Method(Protocol):
    """One algorithm that chooses codes, scales and zero points."""

    def quantize(
        self, weight: Tensor, statistics: SiteStatistics, schemes: Sequence[Scheme]
    ) -> tuple[MethodResult, ...]:
        """Weight [out, in], float32, in every scheme, in order."""
        ...

    def quantize_many(
        self, weights: Sequence[Tensor], statistics: SiteStatistics, schemes: Sequence[Scheme]
    ) -> tuple[tuple[MethodResult, ...], ...]:
        """The same for several weights [out_k, in] of one input: for every weight, all schemes."""
        ...
