"""Find the quantizable sites of a model by running each kind of block once.

A block is run on noise with small random weights while its weight products are watched: which parameters
multiply, in which order, which of them read the same tensor, and what comes after the attention function.
Names play no part. Blocks of equal parameter shapes are run once.
"""

import copy
from dataclasses import replace

import torch
from torch import nn

from quantriage.model.capture import CaptureWeightCalls, WeightCall
from quantriage.model.causal import BlockCall, CausalModel
from quantriage.model.layout import Piece
from quantriage.model.site import ModelMap, Site


def discover(model: CausalModel) -> ModelMap:
    """Sites of every block. Memory: one block. Also teaches the model's stubs what a block returns."""
    hidden, calls = model.start_from_noise(8)
    seen: dict[tuple[tuple[str, tuple[int, ...]], ...], list[_Product]] = {}
    sites: list[Site] = []
    for index in range(model.block_count):
        template = model.block_template(index)
        key = tuple((name, tuple(p.shape)) for name, p in template.named_parameters())
        if key not in seen:
            seen[key] = _watch(model, template, hidden, calls[index])
        sites.extend(_sites_of(index, template, seen[key], model.block_pieces(index)))
    return ModelMap(model.block_count, tuple(sites), model.ends())


class _Product:
    """A parameter that multiplies, as first seen in a run."""

    def __init__(self, call: WeightCall, group: int) -> None:
        self.parameter, self.transposed, self.group = call.parameter, call.transposed, group
        self.after_attention = call.after_attention


def _watch(model: CausalModel, template: nn.Module, hidden: torch.Tensor, call: BlockCall) -> list[_Product]:
    """Products of one block in run order, from a run with small random weights."""
    block = randomized(template, model.device)
    products: dict[str, _Product] = {}
    inputs: list[torch.Tensor] = []  # kept alive so that identity means identity

    def note(product: WeightCall) -> None:
        group = next((i for i, t in enumerate(inputs) if t is product.input), len(inputs))
        if group == len(inputs):
            inputs.append(product.input)
        products.setdefault(product.parameter, _Product(product, group))

    with torch.no_grad(), CaptureWeightCalls(block, note):
        out = block(hidden, *call.args, **call.kwargs)
    model.set_block_returns_tuple(isinstance(out, tuple))
    return list(products.values())


def randomized(template: nn.Module, device: torch.device) -> nn.Module:
    """The block with seeded small random matrices, and vectors from 1/2 to 3/2 in steps of 1/256."""
    generator = torch.Generator().manual_seed(1)
    block = copy.deepcopy(template)
    for module in block.modules():
        for name, value in module._parameters.items():
            if value is not None and value.is_meta:
                noise = torch.randn(value.shape, generator=generator) * 0.02
                if value.ndim < 2:  # steps, so that adding 1 to a vector and taking it off again is exact
                    noise = torch.randint(128, 385, value.shape, generator=generator) / 256
                module._parameters[name] = nn.Parameter(noise, requires_grad=False)
    return block.to(device).eval()


def _sites_of(
    index: int, template: nn.Module, products: list[_Product], pieces: dict[str, tuple[Piece, ...]]
) -> list[Site]:
    experts = {p.shape[0] for p in template.parameters() if p.ndim == 3}
    attention_seen = any(p.after_attention for p in products)
    first_after = next((p.group for p in products if p.after_attention), None)
    found: list[Site] = []
    for product in products:
        parameter = template.get_parameter(product.parameter)
        if parameter.ndim == 2 and parameter.shape[0] in experts:
            continue  # the router: it reads what the experts read and has one row for each of them
        if parameter.ndim == 3:
            category = "expert"
        elif not attention_seen:
            category = "linear"
        elif not product.after_attention:
            category = "attention input"
        else:
            category = "attention output" if product.group == first_after else "mlp"
        for piece in pieces[product.parameter]:
            found.append(_site(index, product, piece, tuple(parameter.shape), category))
    return _with_fusion(found)


def _site(index: int, product: _Product, piece: Piece, shape: tuple[int, ...], category: str) -> Site:
    rows, columns = shape[-2:]
    if product.transposed:
        rows, columns = columns, rows
    if piece.rows is not None:
        rows = piece.rows[1] - piece.rows[0]
    return Site(
        name=piece.tensor.removesuffix(".weight"),
        block=index,
        parameter=product.parameter,
        expert=piece.expert,
        rows=piece.rows,
        transposed=product.transposed,
        shape=(rows, columns),
        category=category,
        input_group=product.group,
    )


def _with_fusion(sites: list[Site]) -> list[Site]:
    """Serving engines fuse matrices that read one input (q/k/v, gate/up), and all experts of a block."""

    def key(site: Site) -> tuple[str, int]:
        return ("experts", 0) if site.category == "expert" else ("input", site.input_group)

    leaders: dict[tuple[str, int], str] = {}
    result = []
    for site in sites:
        leader = leaders.setdefault(key(site), site.name)
        result.append(site if leader == site.name else replace(site, fused_with=(leader,)))
    return result
