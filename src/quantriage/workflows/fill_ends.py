"""Candidates of embedding and head for the bank, rounded some rows at a time: a table may have 150,000."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from quantriage.methods.block_rounding import BlockResult, plain_blocks, round_blocks
from quantriage.methods.objective import loss_error, share
from quantriage.methods.protocol import SiteStatistics
from quantriage.numerics.block_tensor import BlockTensor
from quantriage.numerics.schemes import Scheme

_SLICE = 1 << 23  # weights rounded together: 32 MB of float32 and some copies of it


def round_end(
    weight: Tensor,
    statistics: SiteStatistics,
    schemes: Sequence[Scheme],
    feedback: bool,
    at_once: int = _SLICE,
) -> Iterator[tuple[BlockResult, float]]:
    """A table [vocabulary, width], float32, in one GGUF type after another, and the seconds each took.

    Without `feedback` each block is rounded by itself. Rows do not depend on each other, so slices do no
    harm. at_once: weights of a slice.
    """
    rounding = round_blocks if feedback else plain_blocks
    step = max(1, at_once // weight.shape[1])
    slices = [weight[start : start + step].contiguous() for start in range(0, len(weight), step)]
    powers = [loss_error(part, statistics.hessian, ()) for part in slices]
    for scheme in schemes:
        start = time.perf_counter()
        parts = [rounding([part], statistics, [scheme])[0][0] for part in slices]
        yield _joined(scheme, parts, powers), time.perf_counter() - start


def _joined(scheme: Scheme, parts: Sequence[BlockResult], powers: Sequence[float]) -> BlockResult:
    """One result of those of the slices, whose objectives are relative to their own powers."""
    total = sum(powers)

    def mean(values: Sequence[float]) -> float:
        return share(sum(value * power for value, power in zip(values, powers, strict=True)), total)

    return replace(
        parts[0],
        quantized=BlockTensor(scheme, torch.cat([part.quantized.raw for part in parts])),
        objective=mean([part.objective for part in parts]),
        plain_objective=mean([part.plain_objective for part in parts]),
    )
