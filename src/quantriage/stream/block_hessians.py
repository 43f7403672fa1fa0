"""Loss-weighted Hessians of a model's blocks, by whichever pass its memory allows.

A model that fits in the state budget whole, with all Hessians, goes forward and back batch by batch
(resident.py); otherwise boundary states are kept and every block is visited once on the way back. The sums
are the same bit for bit. This is what every rounding starts from: candidates of a bank, a trial of a sweep,
the best rounding that a diagnosis compares with, a repair.
"""

from collections.abc import Callable, Container, Iterable, Mapping

import torch
from torch import Tensor, nn

from quantriage.model.capture import WeightCall
from quantriage.model.site import Site
from quantriage.stream.end_hessians import EndHessians
from quantriage.stream.hessian import OutputSum
from quantriage.stream.loss_hessians import BlockSums, LossHessians, loss_hessians
from quantriage.stream.resident import resident_backward, resident_bytes
from quantriage.stream.site_products import input_key
from quantriage.stream.stream import BlockGradients, Stream

OnHessians = Callable[[int, nn.Module, BlockSums], None]
"""Takes a block's index, the block with its weights, and the sums of its inputs, which it may use up."""


def sites_by_block(sites: Iterable[Site], names: Container[str]) -> dict[int, tuple[Site, ...]]:
    """Those of `sites` that are in `names`, by block; a block without any is not there."""
    found: dict[int, tuple[Site, ...]] = {}
    for site in sites:
        if site.name in names:
            found[site.block] = (*found.get(site.block, ()), site)
    return found


def block_hessians(
    stream: Stream,
    wanted: Mapping[int, tuple[Site, ...]],
    seed: int,
    on_block: OnHessians,
    stages: tuple[str, str] = ("calibrate", "quantize"),
    weighted: bool = True,
    outputs: bool = False,
    ends: EndHessians | None = None,
) -> None:
    """Call `on_block` for every block in `wanted`, last block first; the stream's states are used up.

    stages: what progress calls the gathering and the visits. outputs: also sum the gradients at outputs.
    ends: sums for embedding and head. Peak memory: the state budget, and one block with its Hessians and
    what `on_block` needs.
    """
    generator = torch.Generator().manual_seed(seed)
    gathering, visiting = stages
    stream.embed()
    extra = 0 if ends is None else ends.nbytes
    if resident_bytes(stream) + _hessian_bytes(wanted, outputs) + extra <= stream.states.budget_bytes:
        sums = _at_once(stream, wanted, generator, weighted, outputs, gathering, ends)
        for done, index in enumerate(sorted(wanted, reverse=True), start=1):
            on_block(index, stream.load(index), sums.pop(index).finish())
            stream.progress(visiting, done, len(wanted))
    else:
        stream.through(keep=True, stage=f"{gathering}: forward")
        stream.head_gradients(generator, None if ends is None else ends.on_head)

        def visit(index: int, block: nn.Module, gradients: BlockGradients) -> None:
            if index in wanted:
                on_block(index, block, loss_hessians(gradients, wanted[index], weighted, outputs))
            else:
                gradients.run(lambda *_: None)

        stream.backward(visit, stage=visiting)
        if ends is not None:
            for start in stream.batches:
                ends.at_embedding(stream.states.get(f"g/{start}").to(stream.compute.device))
    stream.states.clear()


def _hessian_bytes(wanted: Mapping[int, tuple[Site, ...]], outputs: bool) -> int:
    widths = {(block, input_key(s)): s.shape[1] for block, members in wanted.items() for s in members}
    rows = [site.shape[0] for members in wanted.values() for site in members if outputs]
    return sum(4 * width * width for width in widths.values()) + sum(map(OutputSum.bytes_of, rows))


def _at_once(
    stream: Stream,
    wanted: Mapping[int, tuple[Site, ...]],
    generator: torch.Generator,
    weighted: bool,
    outputs: bool,
    stage: str,
    ends: EndHessians | None,
) -> dict[int, LossHessians]:
    sums = {b: LossHessians(m, stream.compute.device, weighted, outputs) for b, m in wanted.items()}

    def on_block(block: int, start: int, products: list[tuple[WeightCall, Tensor]]) -> None:
        if block in sums:
            for call, gradient in products:
                sums[block].on_gradient(start, call, gradient)
            sums[block].flush()

    resident_backward(stream, generator, on_block, stage, ends)
    return sums
