"""Quantize every site in every scheme that may be wanted: one forward and one backward visit of each block.

The forward pass leaves the states of every boundary; the backward pass recomputes a block, sums its
loss-weighted Hessians while the gradient passes, rounds, writes the block's candidates and commits a ledger
line. Blocks do not depend on each other's rounding, so a killed run resumes by replaying the two passes and
skipping what is committed: the result is byte for byte the same.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor, nn

from quantriage.formats.bank import CandidateBank
from quantriage.methods.protocol import MethodResult, SiteStatistics
from quantriage.methods.registry import METHODS
from quantriage.model.site import ModelMap, Site, read_site
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme
from quantriage.numerics.weight_error import weight_error
from quantriage.records.ledger import Ledger
from quantriage.records.types import Finding, QuantizedSite, WeightError
from quantriage.stream.hessian import HessianSum
from quantriage.stream.loss_hessians import loss_hessians
from quantriage.stream.site_products import InputKey, input_key
from quantriage.stream.stream import BlockGradients, Stream


@dataclass(frozen=True)
class Wanted:
    """The schemes to round one site in, and the method that rounds."""

    schemes: tuple[Scheme, ...]
    method: str = "gptq"


def error_record(original: Tensor, quantized: QuantizedTensor) -> WeightError:
    """The weight error of a candidate as a record. original: [out, in]."""
    error = weight_error(original, quantized)
    return WeightError(
        frobenius=error.frobenius,
        relative=error.relative,
        maximum=error.maximum,
        mean_absolute=error.mean_absolute,
    )


def fill_bank(
    stream: Stream,
    model_map: ModelMap,
    wanted: Mapping[str, Wanted],
    bank: CandidateBank,
    ledger: Ledger,
    seed: int,
    loss_weighted: bool = True,
) -> list[QuantizedSite]:
    """Write the candidates of all blocks to `bank`; returns one record for each site and scheme.

    Peak memory: one block, its Hessians, one input's factorization, and the stream's state budget.
    """
    done = ledger.completed()
    if not all(_step(block) in done for block in range(model_map.blocks)):
        stream.forward(keep=True, stage="calibrate: forward")
        stream.head_gradients(torch.Generator().manual_seed(seed))

        def on_block(index: int, block: nn.Module, gradients: BlockGradients) -> None:
            if _step(index) in ledger.completed():
                gradients.run(lambda *_: None)
                return
            sites = tuple(s for s in model_map.in_block(index) if s.name in wanted)
            hessians = loss_hessians(gradients, sites, loss_weighted)
            candidates, records = _quantize_block(block, sites, hessians, wanted)
            digest = bank.write(index, candidates)
            ledger.commit(_step(index), digest, {"sites": msgspec.to_builtins(records)})

        stream.backward(on_block, stage="quantize")
        stream.states.clear()
    commits = ledger.completed()
    found = [commits[_step(block)].payload["sites"] for block in range(model_map.blocks)]
    return [record for block in found for record in msgspec.convert(block, list[QuantizedSite])]


def _step(block: int) -> str:
    return f"block-{block}"


def _quantize_block(
    block: nn.Module,
    sites: Sequence[Site],
    hessians: dict[InputKey, HessianSum],
    wanted: Mapping[str, Wanted],
) -> tuple[dict[tuple[str, Scheme], QuantizedTensor], list[QuantizedSite]]:
    by_input: dict[tuple[InputKey, Wanted], list[Site]] = {}
    for site in sites:
        if wanted[site.name].schemes:
            by_input.setdefault((input_key(site), wanted[site.name]), []).append(site)
    candidates: dict[tuple[str, Scheme], QuantizedTensor] = {}
    records: list[QuantizedSite] = []
    remaining = {key: sum(k == key for k, _ in by_input) for key in hessians}
    statistics: dict[InputKey, SiteStatistics] = {}
    for (key, want), group in by_input.items():
        start = time.perf_counter()
        if key not in statistics:
            statistics[key] = SiteStatistics(hessians[key].value(), hessians.pop(key).tokens)
        weights = [read_site(block, site).float() for site in group]
        results = METHODS[want.method].quantize_many(weights, statistics[key], want.schemes)
        nearest = METHODS["rtn"].quantize_many(weights, statistics[key], want.schemes)
        seconds = (time.perf_counter() - start) / (len(group) * len(want.schemes))
        for site, weight, of_site, plain in zip(group, weights, results, nearest, strict=True):
            for scheme, result, rtn in zip(want.schemes, of_site, plain, strict=True):
                candidates[site.name, scheme] = result.quantized
                tokens = statistics[key].tokens
                records.append(_record(site, scheme, want.method, weight, result, rtn, tokens, seconds))
        remaining[key] -= 1
        if remaining[key] == 0:
            del statistics[key]
    return candidates, records


def _record(
    site: Site,
    scheme: Scheme,
    method: str,
    weight: Tensor,
    result: MethodResult,
    rtn: MethodResult,
    tokens: int,
    seconds: float,
) -> QuantizedSite:
    findings = tuple(
        Finding(severity=f.severity, code=f.code, text=f.text, site=site.name) for f in result.findings
    )
    return QuantizedSite(
        site=site.name,
        scheme=str(scheme),
        method=method,
        error=error_record(weight, result.quantized),
        objective=result.objective,
        rtn_objective=rtn.objective,
        damping=result.damping,
        tokens=tokens,
        seconds=seconds,
        findings=findings,
    )
