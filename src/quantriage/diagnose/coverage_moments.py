"""What the inputs of a block look like on several texts at once: second moments, ranges, leverages.

All texts go through the model block by block, side by side, so that a block is loaded once and its inputs are
compared while it is in memory. The *leverage* of an input x under a text's second moment H is
x^T (H + damping)^-1 x: large where the text was small. Its mean over the tokens of another text is
trace(H_other (H + damping)^-1), so the second moment's mismatch is a sum over tokens, and each token, window
and prompt has its own part in it. A distance between the matrices would not say who causes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantriage.model.capture import WeightCall
from quantriage.model.site import Site
from quantriage.stream.hessian import HessianSum
from quantriage.stream.site_products import InputKey, SiteProducts, input_key
from quantriage.stream.stream import Stream

DAMPING = 0.01  # of the mean diagonal: what the rounding adds, so directions below it are free to both


class InputMoments:
    """Second moment and range of one input over the tokens it saw; merges, so a text may come in parts."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._sum = HessianSum(width, device)
        self._power = 0.0
        self.largest = torch.zeros(width, device=device)  # magnitude of each channel

    @property
    def tokens(self) -> int:
        """How many were seen."""
        return self._sum.tokens

    def update(self, inputs: Tensor) -> None:
        """Add inputs [n, in]."""
        rows = inputs.float()
        self._sum.update(rows)
        self._power += float(rows.square().sum(dtype=torch.float64))
        if len(rows):
            self.largest = torch.maximum(self.largest, rows.abs().amax(dim=0))

    def merge(self, other: "InputMoments") -> None:
        """Add what another part of the text gave."""
        self._sum.merge(other._sum)
        self._power += other._power
        self.largest = torch.maximum(self.largest, other.largest)

    def second_moment(self) -> Tensor:
        """Mean of x x^T [in, in]; zeros if no token came. Ends the sum: it cannot be updated afterwards."""
        power, tokens = self._power, max(1, self._sum.tokens)
        matrix = self._sum.value()  # of mean diagonal 1
        return matrix.mul_(power / (tokens * matrix.shape[0]))


def damped_factor(moment: Tensor, damping: float = DAMPING) -> Tensor:
    """Lower Cholesky factor [in, in] of moment + damping * mean diagonal; of the identity for zeros."""
    mean = float(moment.diagonal().mean())
    matrix = moment.clone()
    matrix.diagonal().add_(damping * mean if mean > 0 else 1.0)
    factor: Tensor = torch.linalg.cholesky(matrix)
    return factor


def leverages(inputs: Tensor, factor: Tensor) -> Tensor:
    """x^T (L L^T)^-1 x of inputs [n, in] under factor L [in, in]: [n], float32."""
    return whitened(inputs, factor).square_().sum(dim=0)


def whitened(inputs: Tensor, factor: Tensor) -> Tensor:
    """L^-1 x as columns [in, n]."""
    found: Tensor = torch.linalg.solve_triangular(factor, inputs.float().T, upper=False)
    return found


@dataclass(frozen=True)
class InputBatch:
    """One batch's rows [n, in] of one input. windows: sequences they fill whole, None for an expert's."""

    key: InputKey
    start: int
    inputs: Tensor
    windows: int | None


def watch_inputs(
    stream: Stream,
    index: int,
    block: nn.Module,
    sites: Sequence[Site],
    on_batch: Callable[[InputBatch], None],
) -> None:
    """Run a stream's batches through a block and report every distinct input once for each batch."""
    products = SiteProducts(sites)
    owners: dict[tuple[int, InputKey], str] = {}  # q, k and v read one input: the first of them reports it

    def on_call(start: int, call: WeightCall) -> None:
        for key in dict.fromkeys(input_key(site) for site in products.of(call)):
            if owners.setdefault((start, key), call.parameter) != call.parameter:
                continue
            rows = call.input.reshape(-1, call.input.shape[-1])
            size = stream.rows(start).shape[0]
            whole = key[1] is None and len(rows) == size * stream.tokens.length
            # the block runs under autocast, which would make our own products bfloat16: too coarse to factor
            with torch.autocast(rows.device.type, enabled=False):
                on_batch(InputBatch(key, start, rows, size if whole else None))

    stream.watch(index, block, on_call)


def gather_moments(
    stream: Stream, index: int, block: nn.Module, sites: Sequence[Site]
) -> dict[InputKey, InputMoments]:
    """Moments of every input of a block on one stream. Memory: one [in, in] for each distinct input."""
    found: dict[InputKey, InputMoments] = {}
    for site in sites:
        found.setdefault(input_key(site), InputMoments(site.shape[1], stream.compute.device))
    watch_inputs(stream, index, block, sites, lambda batch: found[batch.key].update(batch.inputs))
    return found


def side_by_side(
    streams: Sequence[Stream], on_block: Callable[[int, nn.Module], None], stage: str = "coverage"
) -> None:
    """Move all streams through the model together; `on_block` sees each block before they pass it."""
    first = streams[0]
    for stream in streams:
        stream.embed()
    for index in range(first.model.block_count):
        block = first.load(index)
        on_block(index, block)
        for stream in streams:
            stream.advance(index, block)
        first.progress(stage, index + 1, first.model.block_count)
    for stream in streams:
        stream.states.clear()


def mismatch(production: Tensor, factor: Tensor, own: Tensor) -> float:
    """trace(H_p (H_c + damping)^-1) over the same of H_c itself; factor is of H_c, matrices [in, in]."""
    inverse = torch.cholesky_inverse(factor)
    return float((production * inverse).sum() / (own * inverse).sum())
