"""Statistics of every input of a block from a forward pass: second moments, sizes of channels, a sample.

The backward visit gives better Hessians (weighted by what the loss reads) at three times the work; methods of
the field take these plain ones, and a layer's output error is measured in them.
"""

import torch
from torch import Tensor, nn

from quantriage.methods.input_statistics import InputStatistics
from quantriage.model.capture import WeightCall
from quantriage.model.site import Site
from quantriage.stream.hessian import HessianSum
from quantriage.stream.site_products import InputKey, SiteProducts, input_key
from quantriage.stream.stream import Stream

SAMPLE = 256  # rows of each input kept for errors that no Hessian can give


class InputSum:
    """Sums over the tokens of one input. Memory: one [in, in] and `SAMPLE` rows."""

    def __init__(self, width: int, device: torch.device, batches: int) -> None:
        self._hessian = HessianSum(width, device)
        self._absolute = torch.zeros(width, device=device, dtype=torch.float64)
        self._largest = torch.zeros(width, device=device)
        self._quota = max(1, -(-SAMPLE // batches))
        self._rows: list[Tensor] = []

    def update(self, inputs: Tensor) -> None:
        """Add inputs [n, in]."""
        rows = inputs.float()
        if rows.shape[0] == 0:
            return
        self._hessian.update(rows)
        magnitude = rows.abs()
        self._absolute += magnitude.sum(0, dtype=torch.float64)
        self._largest = torch.maximum(self._largest, magnitude.amax(0))
        taken = torch.linspace(0, rows.shape[0] - 1, min(self._quota, rows.shape[0])).long()
        self._rows.append(rows[taken.to(rows.device)].clone())

    def value(self) -> InputStatistics:
        """The statistics; the sums cannot be updated afterwards. An input that saw nothing gives zeros."""
        tokens = self._hessian.tokens
        return InputStatistics(
            hessian=self._hessian.value(),
            tokens=tokens,
            mean_abs=(self._absolute / max(tokens, 1)).float(),
            max_abs=self._largest,
            sample=torch.cat(self._rows) if self._rows else self._largest.new_zeros(0, len(self._largest)),
        )


def gather_inputs(
    stream: Stream, index: int, block: nn.Module, sites: tuple[Site, ...]
) -> dict[InputKey, InputStatistics]:
    """Statistics of all inputs of block `index`, whose states must be in the stream's store."""
    products = SiteProducts(sites)
    width = {input_key(site): site.shape[1] for site in sites}
    device = stream.compute.device
    sums = {key: InputSum(columns, device, len(stream.batches)) for key, columns in width.items()}
    seen: set[tuple[int, InputKey]] = set()

    def note(start: int, call: WeightCall) -> None:
        for key in {input_key(site) for site in products.of(call)}:
            if (start, key) not in seen:  # q, k and v read the same rows
                seen.add((start, key))
                sums[key].update(call.input.reshape(-1, call.input.shape[-1]))

    stream.watch(index, block, note)
    return {key: total.value() for key, total in sums.items()}
