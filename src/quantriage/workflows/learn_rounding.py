"""Learn codes, scales and vectors (norms, biases) block by block, first to last, on the calibration text.

One backward pass over a few windows says what an error at each block's output costs. Then the reference and
the quantized model go through the blocks side by side: each block learns on what the quantized ones before it
really give. What is learned stands in a bank of its own beside the run's. Every block is committed; a killed
run goes on with the next, to the same bytes.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from quantriage.data.token_set import TokenSet
from quantriage.formats.bank import CandidateBank
from quantriage.methods.learned_rounding import RoundingSettings, learn_block, output_metric
from quantriage.numerics.qparams import SCALE_DTYPES
from quantriage.numerics.schemes import Scheme
from quantriage.records.ledger import Ledger, require_committed
from quantriage.records.types import Finding
from quantriage.stream.block_hessians import sites_by_block
from quantriage.stream.progress import Progress
from quantriage.stream.states import StateStore
from quantriage.stream.stream import BlockGradients, Stream, StreamSettings
from quantriage.workflows.export import scale_dtype
from quantriage.workflows.opened import OpenedModel
from quantriage.workflows.rounding import SPILL

LEARNED = "learned-rounding"
_WINDOWS = 16  # of the calibration text: a metric of [d, d] needs no more


class _Learned(msgspec.Struct, frozen=True):
    before: float
    after: float


def learn_rounding(
    opened: OpenedModel,
    tokens: TokenSet,
    schemes: Mapping[str, Scheme | None],
    bank: CandidateBank,
    folder: Path,
    ledger: Ledger,
    steps: int,
    seed: int,
    state_bytes: int,
    progress: Progress,
) -> tuple[CandidateBank, Finding]:
    """The bank of learned candidates of `schemes` in the run's `folder`, and what learning did.

    opened: the model as it is rounded. Memory: a block, 20 bytes for each of its weights, and `state_bytes`.
    """
    learned = CandidateBank(folder / LEARNED)
    chosen = {name: scheme for name, scheme in schemes.items() if scheme is not None}
    ends = {end.name: chosen[end.name] for end in opened.map.ends if end.name in chosen}
    if ends:
        learned.write(None, {(n, s): bank.candidate(None, n, s) for n, s in ends.items()})  # as they are
    sites = sites_by_block(opened.map.sites, chosen)
    done = ledger.completed()
    for index in sites:
        if _step(index) in done:
            require_committed(learned.path(index), done[_step(index)])
    if any(_step(index) not in done for index in sites):
        stores = [StateStore(folder / SPILL / name, state_bytes // 2) for name in ("reference", "quantized")]
        settings = StreamSettings.for_length(tokens.length)

        def stream(over: TokenSet) -> Stream:
            return Stream(opened.model, opened.map.sites, over, opened.compute, stores[0], settings, progress)

        metrics = _metrics(stream(tokens.take(min(_WINDOWS, tokens.sequences))), seed)
        reference = stream(tokens)
        stored = SCALE_DTYPES[scale_dtype(opened.checkpoint)]
        tables = {f"{n}.weight": partial(bank.values, None, n, s) for n, s in ends.items()}
        quantized = reference.branch(opened.model.with_tensors(tables), stores[1])
        reference.embed()
        quantized.embed()
        for index in range(opened.map.blocks):
            own, vectors = sites.get(index, ()), opened.model.block_vectors(index)
            reference.advance(index, reference.load(index))
            if own and _step(index) not in done:
                found = learn_block(
                    quantized,
                    index,
                    [(site, bank.candidate(index, site.name, chosen[site.name])) for site in own],
                    partial(_states, quantized, reference, index),
                    metrics[index],
                    RoundingSettings(steps),
                    tuple(vectors),
                    stored,
                    seed,
                )
                weights = {(name, chosen[name]): weight for name, weight in found.quantized.items()}
                ledger.commit(
                    _step(index),
                    learned.write(index, weights, {vectors[n]: v for n, v in found.vectors.items()}),
                    msgspec.to_builtins(_Learned(found.before, found.after)),
                )
            values = {s.name: partial(learned.values, index, s.name, chosen[s.name]) for s in own}
            block, readers = quantized.load(index, values), learned.vectors([index])
            with torch.no_grad():
                for name, tensor in vectors.items():
                    if tensor in readers:
                        block.get_parameter(name).copy_(readers[tensor]())
            quantized.advance(index, block)
            progress("learn rounding", index + 1, opened.map.blocks)
        for store in stores:
            store.clear()
    commits = ledger.completed()
    return learned, _finding([msgspec.convert(commits[_step(i)].payload, _Learned) for i in sites])


def _states(quantized: Stream, reference: Stream, index: int, start: int) -> tuple[Tensor, Tensor]:
    return quantized.hidden(index, start), reference.hidden(index + 1, start)


def _metrics(stream: Stream, seed: int) -> dict[int, Tensor]:
    """By block: what an error at its output costs, [d, d]."""
    stream.forward(keep=True, stage="learn rounding: reference")
    stream.head_gradients(torch.Generator().manual_seed(seed))
    metrics: dict[int, Tensor] = {}

    def on_block(index: int, _: nn.Module, gradients: BlockGradients) -> None:
        rows = [stream.states.get(f"g/{start}").flatten(0, -2).float() for start in stream.batches]
        metrics[index] = output_metric(sum((r.T @ r for r in rows), torch.zeros(())))
        if index:
            gradients.run(lambda *_: None)

    stream.backward(on_block, stage="learn rounding: gradients")
    stream.states.clear()
    return metrics


def _finding(blocks: list[_Learned]) -> Finding:
    """What learning did, in words."""
    left = [block.after / block.before for block in blocks if block.before > 0]
    kept = sum(share < 1 for share in left)
    mean = sum(left) / len(left) if left else 1.0
    return _said(
        f"rounding learned block by block: the output error falls in {kept} of {len(blocks)} blocks, "
        f"to {mean:.0%} on the mean"
    )


def _said(text: str) -> Finding:
    return Finding(severity="info", code="learned-rounding", text=text)


def _step(index: int) -> str:
    return f"learned-rounding-{index}"
