"""Quantize every site in every scheme that may be wanted: one forward and one backward visit of each block.

A model that fits in the state budget whole goes forward and back batch by batch. Otherwise the forward pass
leaves the states of every boundary; the backward pass recomputes a block and sums its loss-weighted Hessians
while the gradient passes. Either way the block is rounded, its candidates written, a ledger line committed.
Blocks do not depend on each other's rounding, so a killed run resumes by replaying the passes and skipping
what is committed: the result is byte for byte the same.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import torch
from torch import Tensor, nn

from quantriage.diagnose.ladder import error_record
from quantriage.errors import UsageError
from quantriage.formats.bank import CandidateBank
from quantriage.methods.block_rounding import BlockResult, plain_blocks, round_blocks
from quantriage.methods.protocol import MethodResult, SiteStatistics
from quantriage.methods.registry import DATA_FREE, LOSS_WEIGHTED, METHODS, two_sided
from quantriage.model.site import End, ModelMap, Site, read_site
from quantriage.numerics.block_tensor import BlockTensor
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme
from quantriage.numerics.weight_error import weight_error
from quantriage.parallel import threads
from quantriage.records.ledger import Ledger
from quantriage.records.types import Finding, QuantizedSite
from quantriage.stream.block_hessians import block_hessians
from quantriage.stream.end_hessians import EndHessians
from quantriage.stream.hessian import HessianSum
from quantriage.stream.loss_hessians import BlockSums
from quantriage.stream.site_products import InputKey, input_key
from quantriage.stream.stream import Stream
from quantriage.workflows.fill_ends import round_end

Rounded = QuantizedTensor | BlockTensor
_Outcome = tuple[MethodResult | BlockResult, float]


@dataclass(frozen=True)
class Wanted:
    """The schemes to round one site in, and the method that rounds."""

    schemes: tuple[Scheme, ...]
    method: str = "gptq"


def fill_bank(
    stream: Stream,
    model_map: ModelMap,
    wanted: Mapping[str, Wanted],
    bank: CandidateBank,
    ledger: Ledger,
    seed: int,
) -> list[QuantizedSite]:
    """Write the candidates of all blocks, and of the ends, to `bank`; one record for each site and scheme.

    All sites share one kind of Hessian: UsageError if loss-weighted and unweighted methods are mixed. Ends
    are loss-weighted. Peak memory: one block, its Hessians, one input's factorization, and the stream's state
    budget; after that one table and its candidates.
    """

    def commit(index: int, block: nn.Module, sums: BlockSums) -> None:
        sites = [s for s in model_map.in_block(index) if s.name in wanted]
        candidates, records = _quantize_block(block, sites, sums, wanted)
        digest = bank.write(index, candidates)
        ledger.commit(_step(index), digest, {"sites": msgspec.to_builtins(records)})

    used = {want.method for want in wanted.values()}
    missing = [b for b in range(model_map.blocks) if _step(b) not in ledger.completed()]
    ends = tuple(end for end in model_map.ends if end.name in wanted and wanted[end.name].schemes)
    ends = () if _ENDS in ledger.completed() else ends
    sums = EndHessians(ends, stream.compute.device) if ends and not used <= DATA_FREE else None
    if missing and used <= DATA_FREE:
        for index in missing:
            commit(index, stream.load(index), BlockSums({}, {}))
            stream.progress("quantize", index + 1, model_map.blocks)
    elif missing or sums is not None:
        weighted = used - DATA_FREE <= LOSS_WEIGHTED
        if not weighted and used & LOSS_WEIGHTED:
            raise UsageError(f"methods {sorted(used)} need different Hessians; use one of them in a run")
        sites = {b: tuple(s for s in model_map.in_block(b) if s.name in wanted) for b in missing}
        outputs = any(two_sided(METHODS[name]) for name in used)
        block_hessians(stream, sites, seed, commit, weighted=weighted, outputs=outputs, ends=sums)
    if ends:
        candidates, records = _quantize_ends(stream, ends, sums, wanted)
        ledger.commit(_ENDS, bank.write(None, candidates), {"sites": msgspec.to_builtins(records)})
    commits = ledger.completed()
    steps = [*map(_step, range(model_map.blocks)), *([_ENDS] if _ENDS in commits else [])]
    found = [commits[step].payload["sites"] for step in steps]
    return [record for block in found for record in msgspec.convert(block, list[QuantizedSite])]


_ENDS = "ends"
_ENDS_STAGE = "quantize embedding and head"


def _step(block: int) -> str:
    return f"block-{block}"


def _quantize_ends(
    stream: Stream, ends: Sequence[End], sums: EndHessians | None, wanted: Mapping[str, Wanted]
) -> tuple[dict[tuple[str, Scheme], Rounded], list[QuantizedSite]]:
    candidates: dict[tuple[str, Scheme], Rounded] = {}
    records: list[QuantizedSite] = []
    steps = sum(len(wanted[end.name].schemes) for end in ends)
    stream.progress(_ENDS_STAGE, 0, steps)
    for end in ends:
        weight = stream.model.checkpoint.weights.get(f"{end.name}.weight").float().contiguous()
        statistics = _statistics(None if sums is None else sums.of(end), end.shape[1])
        schemes, method = wanted[end.name].schemes, wanted[end.name].method
        rounded = round_end(weight, statistics, schemes, method not in DATA_FREE)
        for scheme, (result, seconds) in zip(schemes, rounded, strict=True):
            candidates[end.name, scheme] = result.quantized
            plain = result.plain_objective
            records.append(_record(end, scheme, method, weight, result, plain, statistics.tokens, seconds))
            stream.progress(_ENDS_STAGE, len(records), steps)
    return candidates, records


@dataclass(frozen=True)
class _Group:
    """Sites of a block that read one input and are wanted in the same schemes."""

    sites: tuple[Site, ...]
    weights: tuple[Tensor, ...]  # [out, in] each
    wanted: Wanted
    statistics: SiteStatistics


def _quantize_block(
    block: nn.Module,
    sites: Sequence[Site],
    sums: BlockSums,
    wanted: Mapping[str, Wanted],
) -> tuple[dict[tuple[str, Scheme], Rounded], list[QuantizedSite]]:
    by_input: dict[tuple[InputKey, Wanted], list[Site]] = {}
    for site in sites:
        if wanted[site.name].schemes:
            by_input.setdefault((input_key(site), wanted[site.name]), []).append(site)
    widths = {key: members[0].shape[1] for (key, _), members in by_input.items()}
    hessians = {key: _statistics(sums.inputs.pop(key, None), width) for key, width in widths.items()}
    moments = {name: sums.outputs.pop(name).values() for name in list(sums.outputs)}
    groups = [
        _Group(
            tuple(members),
            tuple(read_site(block, site).float().contiguous() for site in members),
            want,
            _with_outputs(hessians[key], members, want, moments),
        )
        for (key, want), members in by_input.items()
    ]
    candidates: dict[tuple[str, Scheme], Rounded] = {}
    records: list[QuantizedSite] = []
    for found in threads(_quantize_group, groups):
        for site_name, scheme, quantized, record in found:
            candidates[site_name, scheme] = quantized
            records.append(record)
    return candidates, records


def _quantize_group(group: _Group) -> list[tuple[str, Scheme, Rounded, QuantizedSite]]:
    start = time.perf_counter()
    schemes, method = group.wanted.schemes, group.wanted.method
    rounded = _rounded_in_blocks(group) if schemes[0].in_blocks else _rounded(group)
    seconds = (time.perf_counter() - start) / (len(group.sites) * len(schemes))
    found: list[tuple[str, Scheme, Rounded, QuantizedSite]] = []
    for site, weight, of_site in zip(group.sites, group.weights, rounded, strict=True):
        for scheme, (result, rtn) in zip(schemes, of_site, strict=True):
            tokens = group.statistics.tokens
            record = _record(site, scheme, method, weight, result, rtn, tokens, seconds)
            found.append((site.name, scheme, result.quantized, record))
    return found


def _rounded(group: _Group) -> list[list[_Outcome]]:
    """By site and scheme, with the objective of plain rounding."""
    schemes, method = group.wanted.schemes, group.wanted.method
    results = METHODS[method].quantize_many(group.weights, group.statistics, schemes)
    nearest = METHODS["rtn"].quantize_many(group.weights, group.statistics, schemes)
    return [
        [(result, rtn.objective) for result, rtn in zip(of_site, plain, strict=True)]
        for of_site, plain in zip(results, nearest, strict=True)
    ]


def _rounded_in_blocks(group: _Group) -> list[list[_Outcome]]:
    """The same for GGUF types; a menu has either those or integers."""
    rounding = plain_blocks if group.wanted.method in DATA_FREE else round_blocks
    results = rounding(group.weights, group.statistics, group.wanted.schemes)
    return [[(result, result.plain_objective) for result in of_site] for of_site in results]


def _statistics(total: HessianSum | None, width: int) -> SiteStatistics:
    """The Hessian of one input; the identity for methods that need none."""
    if total is None:
        return SiteStatistics(torch.eye(width), 0)
    return SiteStatistics(total.value(), total.tokens)


def _with_outputs(
    statistics: SiteStatistics,
    members: Sequence[Site],
    wanted: Wanted,
    moments: Mapping[str, tuple[Tensor, ...]],
) -> SiteStatistics:
    if not two_sided(METHODS[wanted.method]) or not moments:
        return statistics
    return replace(statistics, outputs=tuple(moments[site.name] for site in members))


def _record(
    site: Site | End,
    scheme: Scheme,
    method: str,
    weight: Tensor,
    result: MethodResult | BlockResult,
    rtn_objective: float,
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
        error=error_record(weight_error(weight, result.quantized)),
        objective=result.objective,
        rtn_objective=rtn_objective,
        damping=result.damping,
        tokens=tokens,
        seconds=seconds,
        findings=findings,
    )
