"""The proof: the saved directory and its rivals on held-out text, in float32, sequence by sequence."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from msgspec.structs import replace

from quantriage.evaluate.compare_states import compare_states
from quantriage.evaluate.intervals import compare, perplexity_interval
from quantriage.evaluate.reference_states import final_states
from quantriage.evaluate.summary import Decode, Kind, Subject, summarize
from quantriage.evaluate.token_scores import TokenScores
from quantriage.formats.bank import CandidateBank
from quantriage.formats.gguf import GGUFWeights
from quantriage.plan.sizes import bits_per_weight
from quantriage.records.types import (
    END_CATEGORIES,
    Comparison,
    EvalResult,
    NoiseFloor,
    Proof,
    SiteInfo,
)
from quantriage.stream.compute import Compute
from quantriage.stream.states import StateStore
from quantriage.workflows.meter import Meter, Schemes
from quantriage.workflows.opened import OpenedModel, open_model


@dataclass(frozen=True)
class Rival:
    """An assignment to evaluate beside the shipped one. `rounding`: "gptq" from the bank, or "rtn"."""

    label: str
    kind: Kind
    schemes: Schemes
    bits_per_weight: float
    body_bytes: int
    rounding: str = "gptq"
    blocks_bits: float | None = None


def evaluate_rival(meter: Meter, rival: Rival, bank: CandidateBank | None, decode: Decode) -> EvalResult:
    """One rival, in memory, on the meter's tokens."""
    if rival.rounding == "rtn":
        scores = meter.nearest(rival.schemes)
    elif bank is None:
        raise ValueError(f"{rival.label}: needs the bank of candidates")
    else:
        scores = meter.mix(bank, rival.schemes)
    subject = Subject(
        rival.label, rival.kind, rival.bits_per_weight, rival.body_bytes, blocks_bits=rival.blocks_bits
    )
    return summarize(subject, scores, meter.tokens.tokens, decode)


def evaluate_saved(
    meter: Meter,
    directory: Path,
    label: str,
    kind: Kind,
    body: tuple[float, int, float | None],
    decode: Decode,
) -> EvalResult:
    """The checkpoint as it lies on disk, read by our reader. body: as `stored_sites` gives it."""
    opened = open_model(str(directory), str(meter.compute.device))
    scores = meter.model_scores(opened.model, opened.map)
    size = sum(f.stat().st_size for f in directory.iterdir() if f.is_file())
    digest, whole = opened.checkpoint.digest(), 8 * size / all_weights(opened)
    subject = Subject(label, kind, body[0], body[1], size, str(directory), digest, body[2], whole)
    return summarize(subject, scores, meter.tokens.tokens, decode)


def noise_floor(meter: Meter, other: Compute) -> NoiseFloor:
    """KL and flips of the reference against itself computed in another dtype."""
    states = final_states(
        meter.model, meter.map.sites, meter.tokens, other, StateStore(meter.spill, meter.state_bytes)
    )
    exactly, roughly = meter.reference(), states
    scores = compare_states(meter.model, exactly, meter.model, roughly, meter.tokens, meter.compute)
    return NoiseFloor(
        dtype=other.dtype_name,
        kl=float(scores.kl.double().mean()),
        flips=1.0 - float(scores.agreement.double().mean()),
    )


def assemble_proof(
    results: Sequence[EvalResult], shipped: EvalResult, floors: Sequence[NoiseFloor], tokens_digest: str
) -> Proof:
    """Results, shipped last, with the paired comparison of the shipped one against each rival."""
    comparisons: tuple[Comparison, ...] = tuple(compare(shipped, result) for result in results)
    return Proof(
        reference_perplexity=perplexity_interval(shipped.sequences.reference_nll),
        results=(*results, shipped),
        comparisons=comparisons,
        noise_floor=tuple(floors),
        tokens_digest=tokens_digest,
    )


def sequence_kl(scores: TokenScores) -> list[float]:
    """Mean KL of each sequence."""
    means: torch.Tensor = scores.kl.double().mean(dim=1)
    return [float(v) for v in means]


def stored_sites(opened: OpenedModel) -> tuple[float, int, float | None]:
    """Bits per weight over the sites of a checkpoint as stored, their bytes, and the bits of blocks alone.

    A GGUF file's embedding and head count among its sites, as the target llama.cpp plans them; of other
    formats all sites are in blocks, and the third is None. Experts that are stored as one stack all count.
    """
    weights = opened.checkpoint.weights
    gguf, names = isinstance(weights, GGUFWeights), frozenset(weights.names())
    infos = [
        replace(info, shape=(prod(weights.shape(info.name)) // info.shape[1], info.shape[1]))
        if info.name in names  # a stack: its tensor has no ".weight"
        else info
        for info in (opened.map.infos() if gguf else [site.info() for site in opened.map.sites])
    ]
    sizes = {info.name: _stored_bytes(opened, info) for info in infos}
    total = sum(sizes.values())
    inside = [info for info in infos if info.category not in END_CATEGORIES]
    blocks = bits_per_weight(sum(sizes[info.name] for info in inside), inside) if gguf else None
    return bits_per_weight(total, infos), total, blocks


def all_weights(opened: OpenedModel) -> int:
    """How many weights the model has, norms and all, a tied one once."""
    return sum(prod(opened.checkpoint.weights.shape(name)) for name in opened.model.used_tensors())


def _stored_bytes(opened: OpenedModel, site: SiteInfo) -> int:
    weights = opened.checkpoint.weights
    for tensor in (site.name, f"{site.name}.weight"):
        if isinstance(weights, GGUFWeights) and tensor in weights.parts:
            return weights.nbytes(tensor)  # each tensor has a type of its own
    stored = weights.stored(site.name)
    return stored.nbytes if stored is not None else prod(site.shape) * opened.checkpoint.stored_dtype.itemsize
