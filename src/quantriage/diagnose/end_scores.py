"""What embedding and head would cost in each scheme, from the passes that score the blocks.

The head acts on the reference's final states position by position, so its KL is measured: its logits against
the rounded head's, on a few windows. Of a large vocabulary the likeliest rows are rounded, and the KL is
raised by the share of probability that they carry: a search over all rows in every type took longer than that
over the blocks. An embedding's errors enter at the first boundary, where the gradient of
the probe arrives: (g . dh)^2 / 2, dh being what the rounded table changes there, by token and by sequence as
for the blocks (`change_scores`). A tied table costs the sum. Probes at the logits would serve for the head as
well, but the KL costs one product just as they do and has no noise of theirs.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from quantriage.data.token_set import TokenSet
from quantriage.evaluate.compare_states import compare_states
from quantriage.methods.block_rounding import nearest_blocks
from quantriage.model.causal import CausalModel
from quantriage.model.site import End
from quantriage.numerics.schemes import Scheme
from quantriage.numerics.weight_error import WeightError, weight_error
from quantriage.stream.compute import exact
from quantriage.stream.stream import Stream

Key = tuple[str, Scheme]
_HEAD_TOKENS = 2048
_HEAD_ROWS = 4096


class EndScores:
    """Sums for the ends in `menus`. rows: of a head, that are rounded for its score.

    Memory: a table three times in float32, of an embedding twice.
    """

    def __init__(
        self,
        model: CausalModel,
        ends: tuple[End, ...],
        menus: Mapping[str, tuple[Scheme, ...]],
        rows: int = _HEAD_ROWS,
    ) -> None:
        self._rows = rows
        self._model = model
        self._ends = [end for end in ends if menus.get(end.name)]
        self._menus = menus
        self.errors: dict[Key, WeightError] = {}
        self._head: dict[Key, float] = {}
        self._sums: dict[Key, tuple[float, float]] = {}  # per token, per sequence
        self._tokens = 0

    @torch.no_grad()
    def at_head(self, stream: Stream) -> None:
        """Score heads, once; the stream's states stand at the last boundary."""
        heads = [end for end in self._ends if end.projects]
        if not heads or self._head:
            return
        tokens, states = _first_windows(stream)
        rows, share = self._likeliest(stream, states)
        for end in heads:
            weight = self._weight(end)
            for scheme in self._menus[end.name]:
                part = weight[rows].contiguous()
                rounded = nearest_blocks(part, scheme)
                self.errors[end.name, scheme] = weight_error(part, rounded)
                candidate = self._with(end, weight.clone().index_copy_(0, rows, rounded.dequantize()))
                compute = exact(str(stream.compute.device))
                scores = compare_states(self._model, states, candidate, states, tokens, compute)
                self._head[end.name, scheme] = float(scores.kl.double().mean()) / share
                stream.progress("sensitivity: head", len(self._head), len(self._menus[end.name]))

    @torch.no_grad()
    def at_embedding(self, stream: Stream) -> None:
        """Score embeddings; the gradients of the probe, and the states, stand at the first boundary."""
        used = stream.tokens.tokens.unique()
        self._tokens += stream.tokens.tokens.numel()
        for end in (end for end in self._ends if end.embeds):
            weight = self._weight(end)
            for scheme in self._menus[end.name]:
                rows = weight[used].contiguous()  # the others take no part in this text
                rounded = nearest_blocks(rows, scheme)
                self.errors.setdefault((end.name, scheme), weight_error(rows, rounded))
                values = weight.clone().index_copy_(0, used, rounded.dequantize())
                token, sequence = _squares(stream, self._with(end, values))
                before = self._sums.get((end.name, scheme), (0.0, 0.0))
                self._sums[end.name, scheme] = before[0] + token, before[1] + sequence

    def totals(self) -> tuple[dict[Key, float], dict[Key, float], dict[Key, float]]:
        """Predicted KL in nats per token: per token, per sequence, and the mean of the two that counts.

        The level of the second is taken over all schemes of a table, as over all blocks of a module there.
        """
        token, sequence, mean = dict(self._head), dict(self._head), dict(self._head)
        scale = 0.5 / max(1, self._tokens)
        for end in self._ends:
            found = {key: sums for key, sums in self._sums.items() if key[0] == end.name}
            below, above = (sum(sums[level] for sums in found.values()) for level in (0, 1))
            for key, sums in found.items():
                pooled = sums[0] * above / below if below > 0 else 0.0
                token[key] = token.get(key, 0.0) + scale * sums[0]
                sequence[key] = sequence.get(key, 0.0) + scale * sums[1]
                mean[key] = mean.get(key, 0.0) + scale * (pooled * sums[1]) ** 0.5
        return token, sequence, mean

    def _likeliest(self, stream: Stream, states: Tensor) -> tuple[Tensor, float]:
        """Rows of the head that carry most of sum p (1 - p) over the states, ascending, and their share."""
        mass = torch.zeros(self._model.vocab_size, dtype=torch.float64)
        with self._model.head():
            for hidden in states.flatten(0, 1).split(stream.head_rows):
                p = self._model.logits(hidden.to(stream.compute.device)).softmax(dim=-1)
                mass += (p - p.square()).sum(dim=0).double().cpu()
        rows = mass.topk(min(self._rows, len(mass))).indices.sort().values
        return rows, float(mass[rows].sum() / mass.sum())

    def _weight(self, end: End) -> Tensor:
        return self._model.checkpoint.weights.get(f"{end.name}.weight").float().contiguous()

    def _with(self, end: End, values: Tensor) -> CausalModel:
        """The model with another table in the place of `end`."""
        given = {f"{end.name}.weight": partial(_same, values)}
        return self._model.with_tensors(given)


def _first_windows(stream: Stream) -> tuple[TokenSet, Tensor]:
    """Windows of _HEAD_TOKENS tokens or one more than that, and their states at the last boundary."""
    parts: list[Tensor] = []
    for _, hidden in stream.final_states():
        parts.append(hidden.to("cpu"))
        if sum(part.shape[0] * part.shape[1] for part in parts) >= _HEAD_TOKENS:
            break
    states = torch.cat(parts)
    return stream.tokens.take(len(states)), states


def _squares(stream: Stream, changed: CausalModel) -> tuple[float, float]:
    """Sums of (g . dh)^2 per token and per sequence, dh being what `changed` embeds otherwise."""
    token = sequence = 0.0
    with changed.embedding():
        for start in stream.batches:
            hidden, _ = changed.start(stream.rows(start))
            gradient = stream.states.get(f"g/{start}").to(hidden.device)
            effect = (hidden - stream.hidden(0, start)).mul_(gradient).sum(dim=-1).double()  # [b, t]
            token += float(effect.square().sum())
            sequence += float(effect.sum(dim=1).square().sum())
    return token, sequence


def _same(values: Tensor) -> Tensor:
    return values
