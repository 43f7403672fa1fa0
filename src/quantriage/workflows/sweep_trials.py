"""What each choice of a sweep tries, as data: the trials in order, the one without the choice, and the rule.

A trial holds everything but the choice at the asked-for scheme. `size` compares trials of different size by
what the difference in bits would buy as wider codes; `lowest` takes the least KL;
`cheapest` the fewest calibration tokens that are not shown to be worse than the best.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from quantriage.data.token_set import TokenSet
from quantriage.errors import UsageError
from quantriage.methods.awq import AwqOptions
from quantriage.methods.gptq import Gptq
from quantriage.methods.registry import DATA_FREE, GPTQ, LOSS_WEIGHTED, METHODS
from quantriage.numerics.schemes import IntGrid, PerChannel, PerGroup, PerTensor, Scheme
from quantriage.workflows.sweep_rounders import (
    AtRatio,
    ByAwq,
    ByMethod,
    BySmoothing,
    Needs,
    Rounder,
    Searched,
)

Rule = Literal["size", "lowest", "cheapest"]
GROUP_SIZES = (32, 64, 128, 256)
RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)
DAMPINGS = (0.0001, 0.001, 0.01, 0.1, 1.0)
AWQ_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
SMOOTH_ALPHAS = (0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)
SMOOTH_SCHEME = "w8s-channel"
_UNFOLDED = "AWQ's scales were measured beside the weights; to be loaded they must be folded before"


@dataclass(frozen=True)
class Pick:
    """No rounding of its own: each layer (or input, if its layers share a scale) takes the best other trial.

    by: squared weight error, output error, or error of the product with rounded activations.
    """

    by: Literal["plain", "output", "joint"]
    shared_input: bool
    among: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """One setting. scheme: as asked for. needs: what is gathered, at least what the rounder needs.

    activations: inputs of layers are rounded to 8 bits too. contends: may be recommended.
    tokens: other calibration tokens than the sweep's.
    """

    label: str
    value: float | None
    scheme: Scheme
    rounding: Rounder | Pick
    needs: Needs = "nothing"
    activations: bool = False
    contends: bool = True
    tokens: TokenSet | None = None
    loads_note: str = ""


@dataclass(frozen=True)
class Choice:
    """The trials of one choice."""

    name: str
    baseline: str
    rule: Rule
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Asked:
    """What the trials are built from. leading: special tokens before each window."""

    scheme: Scheme
    method: str
    calibration: TokenSet
    leading: int


def trials_of(choice: str, asked: Asked) -> Choice:
    """The trials of a choice by name."""
    match choice:
        case "group-size":
            return _group_size(asked)
        case "symmetry":
            return _symmetry(asked)
        case "clipping":
            return _clipping(asked)
        case "act-order":
            return _act_order(asked)
        case "damping":
            return _damping(asked)
        case "awq-alpha":
            return _awq(asked)
        case "smoothquant-alpha":
            return _smoothquant(asked)
        case "calibration":
            return _calibration(asked)
        case "method":
            return _method(asked)
    raise UsageError(f"choice {choice!r} is unknown")


def rounder_named(method: str) -> Rounder:
    """A registered method as a rounder."""
    if method == "rtn":
        return AtRatio()
    if method not in METHODS:
        raise UsageError(f"--method {method}: expected one of {', '.join(METHODS)}")
    needs: Needs = "inputs"
    if method in LOSS_WEIGHTED:
        needs = "loss"
    elif method in DATA_FREE:
        needs = "nothing"
    return ByMethod(method, METHODS[method], needs)


def cut(tokens: TokenSet, parts: int, leading: int) -> TokenSet:
    """Every window cut into `parts` shorter ones, each behind the special tokens of the whole window.

    The same text, so that a comparison of lengths is not one of texts as well.
    """
    head, body = tokens.tokens[:, :leading], tokens.tokens[:, leading:]
    width = tokens.length // parts - leading
    pieces = body[:, : width * parts].reshape(-1, width)
    heads = head.repeat_interleave(parts, dim=0)
    return TokenSet.of(torch.cat([heads, pieces], dim=1), tokens.source)


def _trial(label: str, value: float | None, scheme: Scheme, rounder: Rounder) -> Trial:
    return Trial(label, value, scheme, rounder, rounder.needs)


def _gptq(**changed: float) -> Rounder:
    """`gptq` as registered, but for these options."""
    return ByMethod("gptq", Gptq(replace(GPTQ, **changed)), "loss")  # type: ignore[arg-type]


def _group_size(asked: Asked) -> Choice:
    rounder = rounder_named(asked.method)
    trials = [
        _trial(str(size), float(size), replace(asked.scheme, granularity=PerGroup(size)), rounder)
        for size in GROUP_SIZES
    ]
    trials.append(_trial("channel", None, replace(asked.scheme, granularity=PerChannel()), rounder))
    trials.append(_trial("tensor", None, replace(asked.scheme, granularity=PerTensor()), rounder))
    return Choice("group-size", "channel", "size", tuple(trials))


def _symmetry(asked: Asked) -> Choice:
    rounder = rounder_named(asked.method)
    bits = asked.scheme.grid.bits
    trials = [
        _trial(label, None, replace(asked.scheme, grid=IntGrid(bits, label == "symmetric")), rounder)
        for label in ("symmetric", "asymmetric")
    ]
    return Choice("symmetry", "symmetric", "size", tuple(trials))


def _clipping(asked: Asked) -> Choice:
    fixed = [
        Trial(f"{ratio:g}", ratio, asked.scheme, AtRatio(ratio), "inputs", contends=True) for ratio in RATIOS
    ]
    among = tuple(trial.label for trial in fixed)
    more = (
        Trial("per layer, weight error", None, asked.scheme, Pick("plain", False, among)),
        Trial("per layer, output error", None, asked.scheme, Pick("output", False, among)),
        Trial("per group, weight error", None, asked.scheme, Searched(False), "inputs"),
        Trial("per group, weighted error", None, asked.scheme, Searched(True), "inputs"),
    )
    return Choice("clipping", "1", "lowest", (*fixed, *more))


def _act_order(asked: Asked) -> Choice:
    def trial(label: str, order: bool, sweeps: int) -> Trial:
        return _trial(label, None, asked.scheme, _gptq(act_order=order, refine_sweeps=sweeps))

    trials = (
        trial("natural order", False, GPTQ.refine_sweeps),
        trial("act-order", True, GPTQ.refine_sweeps),
        trial("natural order, no refinement", False, 0),
        trial("act-order, no refinement", True, 0),
    )
    return Choice("act-order", "natural order", "lowest", trials)


def _damping(asked: Asked) -> Choice:
    trials = tuple(_trial(f"{d:g}", d, asked.scheme, _gptq(damping=d)) for d in DAMPINGS)
    return Choice("damping", f"{GPTQ.damping:g}", "lowest", trials)


def _awq(asked: Asked) -> Choice:
    def trial(label: str, value: float | None, options: AwqOptions) -> Trial:
        return Trial(label, value, asked.scheme, ByAwq(options), "inputs", loads_note=_UNFOLDED)

    fixed = [trial(f"{a:g}", a, AwqOptions((a,), clip=False)) for a in AWQ_ALPHAS]
    more = (
        trial("searched per input", None, AwqOptions(clip=False)),
        trial("searched, ranges too", None, AwqOptions(clip=True)),
    )
    return Choice("awq-alpha", "0", "lowest", (*fixed, *more))


def _smoothquant(asked: Asked) -> Choice:
    scheme = Scheme.parse(SMOOTH_SCHEME, asked.scheme.scale_dtype)
    note = "int8 activations are not exported by this version"

    def trial(label: str, value: float | None, rounding: Rounder | Pick) -> Trial:
        return Trial(label, value, scheme, rounding, "inputs", activations=True, loads_note=note)

    fixed = [trial(f"{a:g}", a, BySmoothing(a)) for a in SMOOTH_ALPHAS]
    among = ("none", *(one.label for one in fixed))
    trials = (
        Trial("weights only", None, scheme, AtRatio(), "inputs", contends=False),
        trial("none", None, BySmoothing(None)),
        *fixed,
        trial("per input", None, Pick("joint", True, among)),
    )
    return Choice("smoothquant-alpha", "none", "lowest", trials)


def _calibration(asked: Asked) -> Choice:
    method = asked.method if asked.method not in DATA_FREE else "gptq"
    rounder, all_of_it = rounder_named(method), asked.calibration
    counts = sorted({max(2, all_of_it.sequences // part) for part in (8, 4, 2, 1)})
    sets = [all_of_it.take(count) for count in counts if count <= all_of_it.sequences]
    sets += [
        cut(all_of_it, parts, asked.leading)
        for parts in (2, 4)
        if all_of_it.length // parts > asked.leading + 8
    ]
    trials = [_trial("none (rtn)", 0.0, asked.scheme, AtRatio())]
    for tokens in sets:
        trial = _trial(f"{tokens.sequences} x {tokens.length}", None, asked.scheme, rounder)
        trials.append(replace(trial, value=float(tokens.tokens.numel()), tokens=tokens))
    return Choice("calibration", "none (rtn)", "cheapest", tuple(trials))


def _method(asked: Asked) -> Choice:
    rounders: Sequence[Rounder] = [rounder_named(name) for name in METHODS]
    trials = [_trial(rounder.name, None, asked.scheme, rounder) for rounder in rounders]
    trials.insert(1, _trial("rtn, ranges searched", None, asked.scheme, Searched(False)))
    if "awq" not in METHODS:
        made = _trial("awq", None, asked.scheme, ByAwq(AwqOptions()))
        trials.append(replace(made, loads_note=_UNFOLDED))
    return Choice("method", "rtn", "lowest", tuple(trials))
