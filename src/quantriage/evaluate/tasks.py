"""Log-likelihoods of continuations on a streaming model: what multiple-choice tasks are scored by.

All requests go through the blocks together, so each block is loaded once whatever their number. Requests
differ in length: they are padded on the right to a multiple of eight and run in groups of one length, for
under a causal mask nothing reads what follows it. Windows of one length, as elsewhere, were rejected: an item
in the company of others is not what the harness measures. An input that another one begins with is not run
again. Of the logits only the continuation's rows are ever made, a few at a time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantriage.data.task_items import TaskItem, TaskSet
from quantriage.data.token_set import TokenSet
from quantriage.data.windows import leading_tokens
from quantriage.errors import CheckpointError, DataError
from quantriage.model.causal import CausalModel
from quantriage.model.site import Site
from quantriage.stream.compute import Compute
from quantriage.stream.progress import Progress, silent
from quantriage.stream.states import StateStore
from quantriage.stream.stream import SiteWeights, Stream, StreamSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WIDTH = 8  # lengths are rounded up to a multiple: few groups, little padding
_LOGITS = 1 << 24  # logits at once: 64 MB of float32, and as much for their logarithm


@dataclass(frozen=True)
class Request:
    """Token ids [n + 1], of which the last `scored` are the continuation; the model reads the first n."""

    ids: tuple[int, ...]
    scored: int


@dataclass(frozen=True)
class TaskRequests:
    """A task in a model's tokens: a request for each choice, item after item."""

    task: TaskSet
    requests: tuple[Request, ...]

    def by_item(self, values: Sequence[float]) -> tuple[tuple[float, ...], ...]:
        """What belongs to each request, as one row for each item."""
        rows, start = [], 0
        for item in self.task.items:
            rows.append(tuple(values[start : start + len(item.pairs)]))
            start += len(item.pairs)
        return tuple(rows)


@dataclass(frozen=True)
class Reader:
    """A model's tokenizer and bounds: `rows` of its embedding, its `longest` input (None: unknown)."""

    tokenizer: "PreTrainedTokenizerBase"
    rows: int
    longest: int | None

    def task(self, task: TaskSet) -> TaskRequests:
        """The task's prompts and continuations in tokens.

        Raises DataError for a text that the tokenizer makes nothing of, a choice longer than the model reads,
        or a token that it does not embed.
        """
        leading = leading_tokens(self.tokenizer)
        made = [self._request(task, item, pair, leading) for item in task.items for pair in item.pairs]
        return TaskRequests(task, tuple(made))

    def _request(
        self, task: TaskSet, item: TaskItem, pair: tuple[str, str], leading: tuple[int, ...]
    ) -> Request:
        """Split as lm-evaluation-harness splits: both texts are tokens as one, the prompt's count is cut off.

        White space at the end of a prompt counts with the continuation, where byte-pair vocabularies keep it.
        What is too long loses its beginning.
        """
        prompt, continuation = pair
        ids = (*leading, *self._ids(prompt + continuation))
        before = len(leading) + len(self._ids(prompt.rstrip()))
        scored = len(ids) - before
        where = f"{task.source}, line {item.row}"
        if before < 1 or scored < 1 or (self.longest is not None and scored > self.longest):
            most = f" and at most {self.longest} of choice" if self.longest else ""
            raise DataError(
                f"{where}: {before} tokens of prompt and {scored} of {continuation[:60]!r}; expected 1 or "
                f"more of each{most}; take the row out"
            )
        if max(ids) >= self.rows:
            raise DataError(
                f"{where}: holds token id {max(ids)}, but the model embeds {self.rows}; take the row out, or "
                "use this checkpoint's tokenizer"
            )
        return Request(ids if self.longest is None else ids[-(self.longest + 1) :], scored)

    def _ids(self, text: str) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)
        found: list[int] = encoded["input_ids"]
        return found


@dataclass(frozen=True)
class Place:
    """Where and how a model runs: hidden states beyond `state_bytes` go to files in `spill`."""

    compute: Compute
    spill: Path
    state_bytes: int
    progress: Progress = silent


def log_likelihoods(
    model: CausalModel,
    sites: tuple[Site, ...],
    requests: Sequence[Request],
    place: Place,
    weights: SiteWeights | None = None,
    stage: str = "tasks",
) -> list[float]:
    """Sum of the log-probabilities of each request's continuation, sites replaced by `weights`.

    Raises CheckpointError if a model computes no numbers. Peak memory: one block, one batch's activations,
    the state budget; then the head and two arrays of _LOGITS.
    """
    carried_by = carriers(requests)
    by_length: dict[int, list[int]] = {}
    for i in carried_by:
        by_length.setdefault(_padded(requests[i], longest_input(model)), []).append(i)
    total = sum(length * len(group) for length, group in by_length.items())
    streams = [
        _stream(model, sites, [requests[i] for i in group], length, total, place)
        for length, group in by_length.items()
    ]
    with model.embedding():
        for stream in streams:
            stream.start()
    for index in range(model.block_count):
        block = streams[0].load(index, weights)
        for stream in streams:
            stream.advance(index, block)
        place.progress(stage, index + 1, model.block_count)
    found = [0.0] * len(requests)
    with torch.no_grad(), model.head():
        for stream, group in zip(streams, by_length.values(), strict=True):
            for start, hidden in stream.final_states():  # [b, t, d]
                rows = enumerate(group[start : start + len(hidden)])
                carried = [(row, i) for row, carrier in rows for i in carried_by[carrier]]
                sums = _scored(model, hidden, [(row, requests[i]) for row, i in carried], place.compute)
                for (_, i), value in zip(carried, sums, strict=True):
                    found[i] = value
            stream.states.clear()
    lost = sum(not math.isfinite(value) for value in found)
    if lost:
        raise CheckpointError(
            f"{model.checkpoint.path}: {lost} of {len(found)} continuations have no finite likelihood; "
            "expected a model whose outputs are numbers. `quantriage lint` looks for what is wrong with it"
        )
    return found


def longest_input(model: CausalModel) -> int | None:
    """Most tokens that the model's configuration says it reads; None if it does not say."""
    said = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return said if isinstance(said, int) and said > 0 else None


def carriers(requests: Sequence[Request]) -> dict[int, list[int]]:
    """Which requests are run, and for each of them those whose input its own begins with, itself among them.

    Answers of one token share all of their input. From the last in order to the first, whatever begins with
    some input stands right before it.
    """
    found: dict[int, list[int]] = {}
    carrier = -1
    for i in sorted(range(len(requests)), key=lambda i: requests[i].ids[:-1], reverse=True):
        ids = requests[i].ids[:-1]
        if carrier < 0 or requests[carrier].ids[: len(ids)] != ids:
            carrier = i
        found.setdefault(carrier, []).append(i)
    return found


def _padded(request: Request, longest: int | None) -> int:
    """A request's input rounded up, but to no position that the model does not have."""
    length = -(-(len(request.ids) - 1) // _WIDTH) * _WIDTH
    return length if longest is None else min(length, longest)


def _stream(
    model: CausalModel,
    sites: tuple[Site, ...],
    requests: Sequence[Request],
    length: int,
    total: int,
    place: Place,
) -> Stream:
    """Requests padded to `length`, with their share of the state budget for `total` tokens."""
    rows = torch.zeros(len(requests), length, dtype=torch.int64)  # id 0 pads; nothing reads it
    for row, request in zip(rows, requests, strict=True):
        row[: len(request.ids) - 1] = torch.tensor(request.ids[:-1])
    share = place.state_bytes * rows.numel() // total
    states = StateStore(place.spill / f"tasks-{length}", share)
    settings = StreamSettings.for_length(length)
    return Stream(model, sites, TokenSet.of(rows, "tasks"), place.compute, states, settings)


def _scored(
    model: CausalModel, hidden: Tensor, asked: Sequence[tuple[int, Request]], compute: Compute
) -> list[float]:
    """Sums over each continuation, from states [b, t, d] after the last block and the rows they are in."""
    states, targets, owners = [], [], []
    for number, (row, request) in enumerate(asked):
        last = len(request.ids) - 1
        states.append(hidden[row, last - request.scored : last])
        targets.append(torch.tensor(request.ids[-request.scored :]))
        owners += [number] * request.scored
    flat, wanted = torch.cat(states), torch.cat(targets).to(compute.device)  # [n, d], [n]
    rows = max(1, _LOGITS // model.vocab_size)
    parts = []
    for start in range(0, len(flat), rows):
        with compute.autocast():
            logits = model.logits(flat[start : start + rows])
        log_probabilities = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        parts.append(log_probabilities.gather(1, wanted[start : start + rows].unsqueeze(1)).squeeze(1))
    sums = torch.zeros(len(asked), dtype=torch.float64)
    sums.index_add_(0, torch.tensor(owners), torch.cat(parts).double().cpu())
    return [float(value) for value in sums]
