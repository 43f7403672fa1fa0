"""Run any hybrid of a reference and a candidate from where it begins to differ from both.

The states of both models at every block boundary are kept, the reference's from the start, the candidate's
from its first use. A hybrid that is the reference up to block i, or the candidate up to block i, starts
there: to swap one unit in, or to restore one, costs half a pass on average, and one mechanism serves single
swaps, restores and every set that a bisect asks about.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quantriage.diagnose.hybrid import Pair, Unit
from quantriage.evaluate.token_scores import score_tokens
from quantriage.formats.weight_source import WeightSource
from quantriage.model.causal import CausalModel
from quantriage.stream.states import StateStore
from quantriage.stream.stream import Stream


@dataclass(frozen=True)
class HybridScore:
    """Means over all tokens: KL from the reference (nats, may be infinite), and the text's perplexity."""

    kl: float
    perplexity: float


@dataclass(frozen=True)
class StateRoom:
    """Where states go: `bytes` in memory in all, the rest in files under `folder`."""

    folder: Path
    bytes: int

    def store(self, name: str, share: float) -> StateStore:
        """A part of the room."""
        return StateStore(self.folder / name, int(self.bytes * share))


class HybridRuns:
    """Scores of hybrids on one token set, in float32. `forwards` counts whole passes and parts of passes.

    Memory: one block, the head, and the room for states, which also takes the reference's logits.
    """

    def __init__(self, stream: Stream, pair: Pair, units: Sequence[Unit], room: StateRoom) -> None:
        self.pair, self.room = pair, room
        self.units = {unit.name: unit for unit in units}
        self.forwards = 0.0
        model = stream.model
        blocks = (model.block_template(i) for i in range(model.block_count))
        self._costs = [sum(p.numel() for p in block.parameters()) for block in blocks]
        self._head_cost = model.vocab_size * model.hidden_size
        self._high: Stream | None = None
        self._logits = room.store("logits", 0.15)
        self._low = stream.branch(model, room.store("reference", 0.4))
        self._low.forward(keep=True, stage="reference's states")
        self._keep_logits()
        self._count(0)

    @torch.no_grad()
    def _keep_logits(self) -> None:
        low = self._low
        with low.model.head():
            for start, hidden in low.final_states():
                for part, rows in enumerate(hidden.flatten(0, 1).split(low.head_rows)):
                    self._logits.put(f"{start}/{part}", low.model.logits(rows))

    def cost(self, taken: Collection[str]) -> float:
        """What part of a pass `score` needs, if units outside the blocks do not change the first state."""
        return self._part(max(self._first_differing(taken)))

    def score(self, taken: Collection[str]) -> HybridScore:
        """The reference with the units `taken` from the candidate."""
        if len(taken) == len(self.units):
            high = self._candidate()
            return self._score(high, high.model)
        model = self._low.model.with_weights(self.pair.taking(self.units[name] for name in taken))
        branch = self._low.branch(model, self.room.store("hybrid", 0.05))
        origin, first = self._origin(branch, taken)
        branch.resume(origin, first)
        self._count(first)
        found = self._score(branch, model)
        branch.states.clear()
        return found

    def score_other(self, weights: WeightSource) -> HybridScore:
        """The reference's model over any other weights: a whole pass."""
        model = self._low.model.with_weights(weights)
        branch = self._low.branch(model, self.room.store("other", 0.05))
        branch.embed()
        branch.resume(branch, 0)
        self._count(0)
        found = self._score(branch, model)
        branch.states.clear()
        return found

    def close(self) -> None:
        """Forget all states and their files."""
        for states in (self._low.states, self._logits, *([self._high.states] if self._high else [])):
            states.clear()

    def _candidate(self) -> Stream:
        if self._high is None:
            model = self._low.model.with_weights(self.pair.taking(self.units.values()))
            self._high = self._low.branch(model, self.room.store("candidate", 0.4))
            self._high.forward(keep=True, stage="candidate's states")
            self._count(0)
        return self._high

    def _origin(self, branch: Stream, taken: Collection[str]) -> tuple[Stream, int]:
        """Whose states the hybrid shares longest, and up to which boundary."""
        low, high = self._first_differing(taken)
        outer = {name for name, unit in self.units.items() if unit.block is None}
        start = self._low
        if not outer.isdisjoint(taken):
            branch.embed()
            start = branch
        options = [(0, branch)] if start is branch else []
        if start is self._low or _same_start(start, self._low):
            options.append((low, self._low))
        if self._high is not None and (outer <= set(taken) or _same_start(start, self._high)):
            options.append((high, self._high))
        first, origin = max(options, key=lambda option: option[0])
        return origin, first

    def _first_differing(self, taken: Collection[str]) -> tuple[int, int]:
        """First block that differs from the reference's, and first that differs from the candidate's."""
        low = high = self._low.model.block_count
        for unit in self.units.values():
            if unit.block is not None and unit.name in taken:
                low = min(low, unit.block)
            elif unit.block is not None:
                high = min(high, unit.block)
        return low, high

    def _part(self, first: int) -> float:
        return (sum(self._costs[first:]) + self._head_cost) / (sum(self._costs) + self._head_cost)

    def _count(self, first: int) -> None:
        self.forwards += self._part(first)

    @torch.no_grad()
    def _score(self, stream: Stream, model: CausalModel) -> HybridScore:
        kl = nll = 0.0
        with model.head():
            for start, hidden in stream.final_states():
                targets = stream.rows(start).roll(-1, dims=1).flatten()
                scored = torch.ones_like(stream.rows(start), dtype=torch.bool)
                scored[:, -1] = False  # nothing follows the last token
                parts = self._parts(start, hidden, targets, scored.flatten(), model)
                for part_kl, part_nll in parts:
                    kl, nll = kl + part_kl, nll + part_nll
        tokens = stream.tokens.tokens
        mean = nll / (tokens.shape[0] * (tokens.shape[1] - 1))
        finite = math.isfinite(kl) and math.isfinite(mean)
        return HybridScore(
            kl / tokens.numel() if finite else math.inf, math.exp(mean) if finite and mean < 700 else math.inf
        )

    def _parts(
        self, start: int, hidden: Tensor, targets: Tensor, scored: Tensor, model: CausalModel
    ) -> list[tuple[float, float]]:
        """Sums of KL over all rows and of -log p(next) over scored rows, part by part of a batch."""
        size = self._low.head_rows
        found = []
        chunks = zip(hidden.flatten(0, 1).split(size), targets.split(size), scored.split(size), strict=True)
        for part, (rows, following, counts) in enumerate(chunks):
            left = self._logits.get(f"{start}/{part}").to(rows.device)
            scores = score_tokens(left, model.logits(rows), following.to(rows.device))
            found.append((float(scores.kl.double().sum()), float(scores.nll.double()[counts].sum())))
        return found


def _same_start(one: Stream, other: Stream) -> bool:
    return all(torch.equal(one.hidden(0, start), other.hidden(0, start)) for start in one.batches)
