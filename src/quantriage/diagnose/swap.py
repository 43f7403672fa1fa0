"""The true cost of quantizing one site: the KL with only that site replaced, from cached block boundaries.

The rung that the cheaper ones are judged by. The reference's states at every boundary are computed once;
a swap in block i runs blocks i .. last only, half the model on average. Always float32: a single site's KL
can lie below the noise of bfloat16.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from quantriage.evaluate.token_scores import token_kl
from quantriage.model.site import Site, read_site, write_site
from quantriage.numerics.block_tensor import BlockTensor
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme
from quantriage.stream.stream import Stream

Rounding = Callable[[Tensor, Scheme], QuantizedTensor | BlockTensor]
"""Original weight [out, in] and scheme -> the candidate to try."""


def swap_kl(
    stream: Stream,
    sites: tuple[Site, ...],
    menus: Mapping[str, tuple[Scheme, ...]],
    rounding: Rounding,
    stage: str = "swap",
) -> dict[tuple[str, Scheme], float]:
    """KL in nats per token for every site and scheme in `menus`, on the stream's tokens.

    Cost: sites * schemes * (half a forward pass and the head). Memory: two blocks, the head, the stream's
    state budget, and the reference's logits, tokens * vocabulary floats: keep the token set small.
    """
    stream.forward(keep=True, stage=f"{stage}: reference")
    total = sum(len(menus.get(site.name, ())) for site in sites)
    found: dict[tuple[str, Scheme], float] = {}
    with stream.model.head(), torch.no_grad():
        reference = [
            stream.model.logits(rows)
            for _, hidden in stream.final_states()
            for rows in hidden.flatten(0, 1).split(stream.head_rows)
        ]
        for site in sites:
            for scheme in menus.get(site.name, ()):
                found[site.name, scheme] = _one_swap(stream, site, scheme, rounding, reference)
                stream.progress(stage, len(found), total)
    stream.states.clear()
    return found


@torch.no_grad()
def _one_swap(
    stream: Stream, site: Site, scheme: Scheme, rounding: Rounding, reference: Sequence[Tensor]
) -> float:
    block = stream.load(site.block)
    original = read_site(block, site).float().contiguous()
    write_site(block, site, rounding(original, scheme).dequantize())
    for start in stream.batches:
        stream.states.put(f"swap/{start}", stream.run(site.block, block, stream.hidden(site.block, start)))
    for index in range(site.block + 1, stream.model.block_count):
        block = stream.load(index)
        for start in stream.batches:
            hidden = stream.states.get(f"swap/{start}").to(stream.compute.device)
            stream.states.put(f"swap/{start}", stream.run(index, block, hidden))
    total, count, chunk = 0.0, 0, 0
    for start in stream.batches:
        changed = stream.states.get(f"swap/{start}").to(stream.compute.device)
        for rows in changed.flatten(0, 1).split(stream.head_rows):
            kl = token_kl(reference[chunk], stream.model.logits(rows))
            total, count, chunk = total + float(kl.double().sum()), count + len(kl), chunk + 1
    return total / count
