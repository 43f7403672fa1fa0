"""Measure what trials rounded: one forward pass each, float32, on selection or on held-out text."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
from torch import Tensor

from quantriage.data.token_set import TokenSet
from quantriage.evaluate.compare_states import compare_states
from quantriage.evaluate.token_scores import TokenScores
from quantriage.model.site import Site
from quantriage.numerics.schemes import Scheme
from quantriage.records.digest import bytes_digest
from quantriage.records.ledger import Ledger
from quantriage.records.types import Record
from quantriage.stream.compute import exact
from quantriage.stream.progress import Progress
from quantriage.stream.states import StateStore
from quantriage.stream.stream import Stream, StreamSettings
from quantriage.workflows.meter import Meter
from quantriage.workflows.opened import OpenedModel
from quantriage.workflows.sweep_activations import final_states_rounded
from quantriage.workflows.sweep_store import TrialStore


class Measured(Record, frozen=True):
    """Means by sequence, so that any two on the same tokens can be paired."""

    kl: tuple[float, ...]
    nll: tuple[float, ...]
    reference_nll: tuple[float, ...]
    agreement: float


@dataclass(frozen=True)
class Stored:
    """What a measurement puts in place: for each site, whose trial's weight and in which scheme."""

    label: str
    sites: Mapping[str, tuple[int, Scheme]]
    activations: bool


@dataclass(frozen=True)
class Bench:
    """One token set under one role, with what a measurement needs and the ledger that keeps its result."""

    choice: str
    role: str
    opened: OpenedModel
    tokens: TokenSet
    store: TrialStore
    ledger: Ledger
    cache: Path
    spill: Path
    state_bytes: int
    progress: Progress

    def measure(self, stored: Stored) -> Measured:
        """The trial's scores, from the ledger if an earlier try of this run has them."""
        step = f"{self.choice} measured {self.role} {stored.label}"
        done = self.ledger.completed()
        if step in done:
            return msgspec.convert(done[step].payload, Measured)
        scores = self._scores(stored)
        found = Measured(
            kl=_means(scores.kl),
            nll=_means(scores.nll),
            reference_nll=_means(scores.reference_nll),
            agreement=float(scores.agreement.double().mean()),
        )
        self.ledger.commit(step, bytes_digest(msgspec.json.encode(found)), msgspec.to_builtins(found))
        return found

    def _scores(self, stored: Stored) -> TokenScores:
        sites = self.opened.map.by_name()
        meter = self._meter()
        weights = {n: partial(self._weight, sites[n], *which) for n, which in stored.sites.items()}
        if not stored.activations:
            return meter.weights(weights)
        model = self.opened.model
        stream = Stream(
            model,
            self.opened.map.sites,
            self.tokens,
            meter.compute,
            StateStore(self.spill, self.state_bytes),
            StreamSettings.for_length(self.tokens.length),
            self.progress,
        )
        scales = {n: partial(self._scale, sites[n], *which) for n, which in stored.sites.items()}
        reference = meter.reference()
        states = final_states_rounded(stream, weights, scales, meter.stage)
        return compare_states(model, reference, model, states, self.tokens, meter.compute)

    def _meter(self) -> Meter:
        return Meter(
            self.opened.model,
            self.opened.map,
            self.tokens,
            exact(str(self.opened.compute.device)),
            self.cache,
            self.spill,
            self.state_bytes,
            self.progress,
            f"{self.choice}: measure",
        )

    def _weight(self, site: Site, trial: int, scheme: Scheme) -> Tensor:
        return self.store.read(trial, site, scheme).dequantize()

    def _scale(self, site: Site, trial: int, scheme: Scheme) -> Tensor | None:
        return self.store.read(trial, site, scheme).input_scale


def _means(values: Tensor) -> tuple[float, ...]:
    return tuple(values.double().mean(dim=1).tolist())
