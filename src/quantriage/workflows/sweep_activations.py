"""Run a model whose layers round their inputs to 8 bits, token by token, with weights replaced as usual.

While a block runs, every product with one of its sites gets its input divided by the site's scale, rounded
per token and multiplied back; the weight in the block already carries the scale the other way. Rewriting the
model's modules was rejected: transposed and fused expert weights would each need a case of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantriage.methods.smoothquant import round_tokens
from quantriage.model.site import Site
from quantriage.stream.stream import SiteWeights, Stream

Scales = Mapping[str, Callable[[], Tensor | None]]
"""Site name -> function that gives the scale [in] of its input, None for none. Absent: not rounded."""


class RoundedInputs(TorchFunctionMode):
    """While active, inputs of products with the given parameters of `block` are rounded."""

    def __init__(self, block: nn.Module, scales: Mapping[tuple[str, int | None], Tensor | None]) -> None:
        super().__init__()
        self._scales = scales
        named = dict(block.named_parameters())
        wanted = {parameter for parameter, _ in scales}
        self._parameters = {named[n].untyped_storage().data_ptr(): (n, named[n]) for n in wanted}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Round the input of a product, then run it."""
        place = {torch.nn.functional.linear: (0, 1), torch.addmm: (1, 2)}.get(func)
        if place is not None and len(args) > place[1]:
            key = self._key(args[place[1]])
            if key is not None and key in self._scales:
                changed = list(args)
                changed[place[0]] = _rounded(args[place[0]], self._scales[key])
                args = tuple(changed)
        return func(*args, **(kwargs or {}))

    def _key(self, weight: Tensor) -> tuple[str, int | None] | None:
        found = self._parameters.get(weight.untyped_storage().data_ptr())
        if found is None:
            return None
        name, parameter = found
        expert = weight.storage_offset() // parameter.stride(0) if parameter.ndim == 3 else None
        return name, expert


def _rounded(inputs: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return round_tokens(inputs).to(inputs.dtype)
    scale = scale.to(inputs.device)
    return (round_tokens(inputs / scale) * scale).to(inputs.dtype)


def final_states_rounded(stream: Stream, weights: SiteWeights, scales: Scales, stage: str) -> Tensor:
    """Hidden states [sequences, length, width] after the last block, inputs of layers rounded."""
    stream.embed()
    for index in range(stream.model.block_count):
        block = stream.load(index, weights)
        with RoundedInputs(block, _by_product(stream.sites, index, scales)):
            stream.advance(index, block)
        stream.progress(stage, index + 1, stream.model.block_count)
    result = torch.cat([hidden.to("cpu") for _, hidden in stream.final_states()])
    stream.states.clear()
    return result


def _by_product(
    sites: Sequence[Site], block: int, scales: Scales
) -> dict[tuple[str, int | None], Tensor | None]:
    """Scales by parameter and expert; sites that are rows of one product share their input's scale."""
    found: dict[tuple[str, int | None], Tensor | None] = {}
    for site in sites:
        key = site.parameter, site.expert
        if site.block == block and site.name in scales and key not in found:
            found[key] = scales[site.name]()
    return found
