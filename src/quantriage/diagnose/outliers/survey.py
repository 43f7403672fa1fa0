"""Every weight and every input of a model, one block at a time.

A block is loaded once: its weights are looked at, then the batches pass it twice, watched and on to the next
boundary. Peak memory is one block, five copies of its largest weight, the sums of its inputs, and the state
budget. What only the worst places' records keep (histograms, error maps) waits in memory until the worst are
known: some kilobytes for each site.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from quantriage.diagnose.outliers.input_sums import InputSum
from quantriage.diagnose.outliers.inputs import TokenNames, Where, look_at_input
from quantriage.diagnose.outliers.weights import WeightLook, look_at_weight
from quantriage.errors import ArchitectureError
from quantriage.model.capture import WeightCall
from quantriage.model.site import ModelMap, Site, read_site
from quantriage.numerics.schemes import Scheme
from quantriage.records.outliers import InputOutliers, Magnitudes
from quantriage.stream.progress import Progress, silent
from quantriage.stream.site_products import InputKey, SiteProducts, input_key
from quantriage.stream.stream import Stream


@dataclass(frozen=True)
class InputLook:
    """The record of an input or state, its histogram, and its channels in full."""

    record: InputOutliers
    magnitudes: Magnitudes
    channel_maximum: Tensor  # float32 [width]
    persistence: Tensor  # float32 [width], share of tokens


@dataclass
class Survey:
    """What was seen so far."""

    weights: list[WeightLook] = field(default_factory=list)
    inputs: list[InputLook] = field(default_factory=list)
    states: list[InputLook] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)


def survey_weights(
    load: Callable[[int], nn.Module],
    model_map: ModelMap,
    schemes: Sequence[Scheme],
    progress: Progress = silent,
) -> Survey:
    """Weights alone; `load` gives a block."""
    found = Survey()
    for index in range(model_map.blocks):
        _look_at_weights(found, load(index), model_map.in_block(index), schemes)
        progress("outliers", index + 1, model_map.blocks)
    return found


def survey(
    stream: Stream,
    model_map: ModelMap,
    schemes: Sequence[Scheme],
    names: TokenNames,
    progress: Progress = silent,
) -> Survey:
    """Weights, inputs of all sites, and the states between blocks, on the stream's tokens."""
    found = Survey()
    stream.embed()
    for index in range(model_map.blocks):
        block, sites = stream.load(index), model_map.in_block(index)
        _look_at_weights(found, block, sites, schemes)
        found.states.append(_state(stream, index, f"state before block {index}", names))
        watched = InputSums(stream, sites)
        stream.watch(index, block, watched.on_call)
        for where, sums in watched.groups():
            if sums is None:
                found.unreached += where.sites
            else:
                found.inputs.append(_looked(where, sums, names))
        stream.advance(index, block)
        progress("outliers", index + 1, model_map.blocks)
    last = model_map.blocks
    found.states.append(_state(stream, last, f"state after block {last - 1}", names))
    return found


def _look_at_weights(
    found: Survey, block: nn.Module, sites: Sequence[Site], schemes: Sequence[Scheme]
) -> None:
    found.weights += [look_at_weight(site, read_site(block, site).float(), schemes) for site in sites]


class InputSums:
    """Sums over the inputs of a block's sites; sites that share an input share its sum."""

    def __init__(self, stream: Stream, sites: Sequence[Site]) -> None:
        self._stream, self._products = stream, SiteProducts(sites)
        self._groups: dict[InputKey, list[Site]] = {}
        for site in sites:
            self._groups.setdefault(input_key(site), []).append(site)
        self._sums: dict[InputKey, InputSum] = {}
        self._read_by: dict[InputKey, str] = {}  # the one product that is listened to

    def on_call(self, start: int, call: WeightCall) -> None:
        """Add what a product reads, unless another product of the same input was asked first."""
        for key in {input_key(site) for site in self._products.of(call)}:
            if self._read_by.setdefault(key, call.parameter) != call.parameter:
                continue
            rows = call.input.detach().reshape(-1, call.input.shape[-1])
            sums = self._sums.setdefault(key, InputSum(rows.shape[1]))
            sums.update(rows, _places(self._stream, start, len(rows)))

    def groups(self) -> list[tuple[Where, InputSum | None]]:
        """Every input in the order of its sites, with its sums, None if no token reached it."""
        return [
            (
                Where(sites[0].name, "input", tuple(s.name for s in sites), sites[0].block, sites[0].module),
                self._sums.get(key),
            )
            for key, sites in self._groups.items()
        ]


def _places(stream: Stream, start: int, rows: int) -> Tensor | None:
    """Flat indices [rows] of a batch's tokens; None where a product reads only some, as an expert does."""
    length = stream.tokens.length
    if rows != len(stream.rows(start)) * length:
        return None
    return torch.arange(start * length, start * length + rows)


def _state(stream: Stream, boundary: int, name: str, names: TokenNames) -> InputLook:
    sums: InputSum | None = None
    for start in stream.batches:
        rows = stream.hidden(boundary, start)
        rows = rows.reshape(-1, rows.shape[-1])
        sums = sums or InputSum(rows.shape[1])
        sums.update(rows, _places(stream, start, len(rows)))
    assert sums is not None, "a token set without sequences"
    return _looked(Where(name, "state", (), boundary, "state"), sums, names)


def _looked(where: Where, sums: InputSum, names: TokenNames) -> InputLook:
    if not torch.isfinite(torch.tensor([sums.moments.m4, sums.magnitude])).all():
        raise ArchitectureError(
            f"{where.name}: reads values that are not finite; the model overflows in float32 on this text, "
            "so its activations have no statistics. Check the checkpoint with `lint`, or give other text"
        )
    return InputLook(
        look_at_input(where, sums, names),
        sums.bins.record(),
        sums.channel_maximum,
        (sums.channel_stands_out.to(torch.float64) / sums.tokens).float(),
    )
