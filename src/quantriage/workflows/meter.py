"""Measure any mix of banked candidates for real: one forward pass with the chosen weights in place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from quantriage.data.token_set import TokenSet
from quantriage.diagnose.fisher import nearest_stored
from quantriage.evaluate.compare_states import compare_states
from quantriage.evaluate.reference_states import cached_reference, final_states
from quantriage.evaluate.token_scores import TokenScores
from quantriage.formats.bank import CandidateBank, TensorReaders
from quantriage.model.causal import CausalModel
from quantriage.model.site import ModelMap
from quantriage.numerics.schemes import Scheme
from quantriage.stream.compute import Compute
from quantriage.stream.progress import Progress, silent
from quantriage.stream.states import StateStore
from quantriage.stream.stream import SiteWeights

Schemes = Mapping[str, Scheme | None]
"""Site name -> scheme, None for a site left in full precision."""


@dataclass(frozen=True)
class Meter:
    """Scores candidates against one reference on one token set, in one compute dtype.

    `cache` holds the reference's states on disk; `spill` takes hidden states beyond `state_bytes`. `scaled`:
    the reference in the scaling that candidates were rounded in, if not its own.
    """

    model: CausalModel
    map: ModelMap
    tokens: TokenSet
    compute: Compute
    cache: Path
    spill: Path
    state_bytes: int
    progress: Progress = silent
    stage: str = "measure"
    scaled: CausalModel | None = None
    _reference: dict[str, Tensor] = field(default_factory=dict)

    def reference(self) -> Tensor:
        """The reference's final states [sequences, length, width], from the cache or computed."""
        if "states" not in self._reference:
            self._reference["states"] = cached_reference(
                self.model,
                self.map.sites,
                self.tokens,
                self.compute,
                self._states(),
                self.cache,
                self.progress,
            )
        return self._reference["states"]

    def mix(self, bank: CandidateBank, schemes: Schemes) -> TokenScores:
        """Scores of the banked candidates under `schemes`, with the bank's vectors."""
        chosen = {name: scheme for name, scheme in schemes.items() if scheme is not None}
        block = self.map.bank_block
        return self.weights(
            {n: partial(bank.values, block(n), n, s) for n, s in chosen.items()},
            bank.vectors(range(self.map.blocks)),
        )

    def nearest(self, schemes: Schemes) -> TokenScores:
        """Scores of plain rounding (RTN, min-max scales) under `schemes`: the baseline of baselines."""
        transposed = {site.name for site in self.map.sites if site.transposed}
        chosen = {name: scheme for name, scheme in schemes.items() if scheme is not None}
        get = self.model.checkpoint.weights.get
        nearest = {n: partial(_nearest, get, n, s, n in transposed) for n, s in chosen.items()}
        return self._scores(self.model, nearest)

    def weights(self, weights: SiteWeights, vectors: TensorReaders | None = None) -> TokenScores:
        """Scores of the reference, as candidates were rounded in it, with some weights replaced, and vectors.

        Weights of embedding and head may be among them.
        """
        return self._scores((self.scaled or self.model).with_tensors(vectors or {}), weights)

    def _scores(self, model: CausalModel, weights: SiteWeights) -> TokenScores:
        reference = self.reference()
        ends = {f"{e.name}.weight": weights[e.name] for e in self.map.ends if e.name in weights}
        model = model.with_tensors(ends)
        states = final_states(
            model,
            self.map.sites,
            self.tokens,
            self.compute,
            self._states(),
            weights,
            self.progress,
            self.stage,
        )
        return compare_states(self.model, reference, model, states, self.tokens, self.compute)

    def model_scores(self, other: CausalModel, other_map: ModelMap) -> TokenScores:
        """Scores of another checkpoint, read and run as saved."""
        reference = self.reference()
        states = final_states(
            other,
            other_map.sites,
            self.tokens,
            self.compute,
            self._states(),
            progress=self.progress,
            stage=self.stage,
        )
        return compare_states(self.model, reference, other, states, self.tokens, self.compute)

    def _states(self) -> StateStore:
        return StateStore(self.spill, self.state_bytes)


def _nearest(get: Callable[[str], Tensor], name: str, scheme: Scheme, transposed: bool) -> Tensor:
    weight = get(f"{name}.weight").float()
    return nearest_stored((weight.T if transposed else weight).contiguous(), scheme).dequantize()
