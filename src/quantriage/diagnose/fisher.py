"""What quantizing each site in each scheme would cost, predicted by the Fisher scores of change_scores.py."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from quantriage.diagnose.change_scores import Shift, score_changes
from quantriage.diagnose.end_scores import EndScores
from quantriage.methods.block_rounding import nearest_blocks
from quantriage.model.site import End, Site
from quantriage.numerics.block_tensor import BlockTensor
from quantriage.numerics.choose_qparams import choose_qparams
from quantriage.numerics.min_max import MinMax
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.rounding import quantize
from quantriage.numerics.schemes import Scheme
from quantriage.numerics.weight_error import WeightError, weight_error
from quantriage.stream.stream import Stream

Key = tuple[str, Scheme]


@dataclass(frozen=True)
class FisherScores:
    """Per site and scheme: predicted KL (nats per token) and the weight error of plain rounding."""

    per_token: dict[Key, float]
    per_sequence: dict[Key, float]
    errors: dict[Key, WeightError]
    kl: dict[Key, float]


def nearest(weight: Tensor, scheme: Scheme) -> QuantizedTensor:
    """Round to nearest with min-max scales: the candidate that every rung of the ladder scores."""
    return quantize(weight, scheme, choose_qparams(weight, scheme, MinMax()))


def nearest_stored(weight: Tensor, scheme: Scheme) -> QuantizedTensor | BlockTensor:
    """`nearest`, also for GGUF types: those have no range to take, so each block is searched by itself."""
    return nearest_blocks(weight, scheme) if scheme.in_blocks else nearest(weight, scheme)


def fisher_scores(
    stream: Stream,
    menus: Mapping[str, tuple[Scheme, ...]],
    seed: int,
    draws: int = 1,
    ends: tuple[End, ...] = (),
) -> FisherScores:
    """Score every site, and of `ends`, in `menus` for each of its schemes on the stream's tokens.

    draws: probes drawn; each costs a forward and a backward pass. Memory: one
    block, its weight errors in every scheme, and the stream's state budget.
    """
    errors: dict[Key, WeightError] = {}

    def changes(site: Site, weight: Tensor) -> dict[Scheme, Shift]:
        found = {}
        for scheme in menus.get(site.name, ()):
            candidate = nearest_stored(weight, scheme)
            errors.setdefault((site.name, scheme), weight_error(weight, candidate))
            found[scheme] = Shift(candidate.dequantize().sub_(weight))
        return found

    outer = EndScores(stream.model, ends, menus)
    scores = score_changes(stream, changes, seed, draws, ends=outer)
    token, sequence, kl = outer.totals()
    return FisherScores(
        scores.per_token | token, scores.per_sequence | sequence, errors | outer.errors, scores.kl | kl
    )
