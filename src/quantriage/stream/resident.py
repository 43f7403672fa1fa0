"""The backward pass of a model that fits in memory whole: one forward pass, not two, and no boundary states.

The streamed pass runs every block twice, once for the states and once more for the gradients. Where all
blocks, one batch's activations and what is gathered fit in the state budget, a batch goes through the whole
model and back at once. Operations and their order within a batch are the same, so the results are too.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quantriage.model.capture import CaptureWeightCalls, WeightCall
from quantriage.stream.end_hessians import EndHessians
from quantriage.stream.stream import Stream

OnBlock = Callable[[int, int, list[tuple[WeightCall, Tensor]]], None]
"""Takes block, first sequence of the batch, and the block's products with the gradients at their outputs."""


def resident_bytes(stream: Stream) -> int:
    """Memory that `resident_backward` needs beside its gatherer: blocks and one batch's saved activations.

    The activations are those of block 0, measured, times the blocks. States of boundary 0 must stand.
    """
    block = stream.for_products(stream.load(0))
    own = {t.untyped_storage().data_ptr() for t in (*block.parameters(), *block.buffers())}
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    hidden = stream.hidden(0, stream.batches[0]).requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        out = _through(stream, 0, block, hidden, lambda _: None)
    del out
    weights = sum(p.numel() * p.element_size() for p in block.parameters())
    return (weights + sum(saved.values())) * stream.model.block_count


def resident_backward(
    stream: Stream,
    generator: torch.Generator,
    on_block: OnBlock,
    stage: str = "backward",
    ends: EndHessians | None = None,
) -> None:
    """From the states of boundary 0 forward and back, batch by batch; a batch's blocks come last to first.

    ends: takes what passes head and embedding.
    """
    count = stream.model.block_count
    blocks = [stream.for_products(stream.load(index)) for index in range(count)]
    with stream.model.head(stream.compute.dtype):
        for number, start in enumerate(stream.batches):
            first = hidden = stream.hidden(0, start).float().requires_grad_(True)
            for index, block in enumerate(blocks):
                visit = _Visit(index, start, on_block)
                hidden.register_hook(visit.finish)
                hidden = _through(stream, index, block, hidden, visit.watch)
            above = stream.head_gradient(hidden.detach(), generator, None if ends is None else ends.on_head)
            (below,) = torch.autograd.grad(hidden, first, above)
            if ends is not None:
                ends.at_embedding(below)
            stream.progress(stage, number + 1, len(stream.batches))


class _Visit:
    """One batch in one block: gradients are handed over, and let go, as soon as the block has its own."""

    def __init__(self, index: int, start: int, on_block: OnBlock) -> None:
        self._index, self._start, self._on_block = index, start, on_block
        self._calls: list[WeightCall] = []
        self._gradients: dict[int, Tensor] = {}

    def watch(self, call: WeightCall) -> None:
        """Note a product of the forward pass."""
        number = len(self._calls)
        call.output.register_hook(lambda gradient: self._gradients.__setitem__(number, gradient))
        self._calls.append(call)

    def finish(self, _: Tensor) -> None:
        """The gradient has reached the block's input: every product that the output reads has had its own."""
        with torch.no_grad():
            self._on_block(
                self._index, self._start, [(self._calls[n], g) for n, g in sorted(self._gradients.items())]
            )
        self._calls.clear()
        self._gradients.clear()


def _through(
    stream: Stream, index: int, block: nn.Module, hidden: Tensor, on_call: Callable[[WeightCall], None]
) -> Tensor:
    with stream.compute.autocast(), CaptureWeightCalls(block, on_call):
        out = stream.model.run_block(block, hidden, stream.call(index, hidden.shape[0]))
    return out.float()
