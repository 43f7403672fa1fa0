"""The backward pass of a model that fits in memory whole: one forward pass, not two, and no boundary states.

The streamed pass runs every block twice, once for the states and once more for the gradients. Where all
blocks, one batch's activations and what is gathered fit in the state budget, a batch goes through the whole
model and back at once. Operations and their order within a batch are the same, so the results are too.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quantriage.model.capture import CaptureWeightCalls, WeightCall
from quantriage.stream.stream import Stream

OnGradient = Callable[[int, int, WeightCall, Tensor], None]
"""Takes block, first sequence of the batch, product, gradient at its output."""


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
    stream: Stream, generator: torch.Generator, on_gradient: OnGradient, stage: str = "backward"
) -> None:
    """From the states of boundary 0 forward and back, batch by batch."""
    count = stream.model.block_count
    blocks = [stream.for_products(stream.load(index)) for index in range(count)]
    with stream.model.head(stream.compute.dtype):
        for number, start in enumerate(stream.batches):
            hidden = stream.hidden(0, start).float().requires_grad_(True)
            calls: list[list[WeightCall]] = [[] for _ in blocks]
            for index, block in enumerate(blocks):
                hidden = _through(stream, index, block, hidden, calls[index].append)
            above = stream.head_gradient(hidden.detach(), generator)
            seen = [(index, call) for index, of_block in enumerate(calls) for call in of_block]
            outputs = [call.output for _, call in seen]
            gradients = torch.autograd.grad(hidden, outputs, above, allow_unused=True)
            with torch.no_grad():
                for (index, call), gradient in zip(seen, gradients, strict=True):
                    if gradient is not None:  # a product that the block's output does not read
                        on_gradient(index, start, call, gradient)
            stream.progress(stage, number + 1, len(stream.batches))


def _through(
    stream: Stream, index: int, block: nn.Module, hidden: Tensor, on_call: Callable[[WeightCall], None]
) -> Tensor:
    with stream.compute.autocast(), CaptureWeightCalls(block, on_call):
        out = stream.model.run_block(block, hidden, stream.call(index, hidden.shape[0]))
    return out.float()
