"""What each target can load, as data: the menu that a plan may choose from.

A menu lists stored schemes only; leaving a site in full precision is always possible and is not an entry.
The lists follow what a target runs, not what its config parser accepts: the WNA16 scheme of vLLM takes every
width from 2 to 8 with and without zero points, but its stock GPU kernels hold 4 and 8 bits, and 8 bits with
zero points only in a kernel package that is installed separately. Asking an installed engine was rejected:
a plan is often made on a machine that does not serve.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from quantriage.errors import BudgetError, UsageError
from quantriage.numerics.block_types import BLOCK_TYPES
from quantriage.numerics.schemes import ScaleDtype, Scheme
from quantriage.records.types import END_CATEGORIES, SiteInfo

_WHERE = ("g32", "g64", "g128", "channel")
_FOUR_BITS = tuple(f"w4{kind}-{where}" for kind in "sa" for where in _WHERE)


@dataclass(frozen=True)
class Target:
    """A loader and the schemes it runs; `alignment` must divide both features of a quantized weight.

    fuses: whether it joins weights (q, k and v; gate and up), which must then share a scheme. stored: the
    format written for it. budgets: whether `recover` spends a budget in it; the others take one scheme, or a
    plan written by hand, from `quantize`. ends: whether it loads embedding and head quantized, so that plans
    and budgets have them among the sites.
    """

    name: str
    schemes: tuple[str, ...]
    note: str
    alignment: int = 1
    fuses: bool = True
    stored: Literal["compressed-tensors", "gptq", "awq", "gguf"] = "compressed-tensors"
    budgets: bool = True
    ends: bool = False


TARGETS: dict[str, Target] = {
    "vllm": Target(
        "vllm",
        _FOUR_BITS + tuple(f"w8s-{where}" for where in _WHERE),
        "vLLM on a GPU, compressed-tensors WNA16: 4 bits with or without zero points, 8 bits without",
    ),
    "vllm-cpu": Target(
        "vllm-cpu",
        _FOUR_BITS,
        "vLLM on a CPU: its kernel holds 4 bits only, in and out features multiples of 32",
        alignment=32,
    ),
    "transformers": Target(
        "transformers",
        tuple(f"w{bits}{kind}-{where}" for bits in range(2, 9) for kind in "sa" for where in _WHERE),
        "transformers with compressed-tensors 0.17: 2 to 8 bits, in the padded layout that it reads; "
        "later releases do not load packed asymmetric checkpoints through transformers 5.23",
    ),
    "gptq": Target(
        "gptq",
        tuple(f"w{bits}{kind}-{where}" for bits in (2, 3, 4, 8) for kind in "sa" for where in _WHERE),
        "the GPTQ layout (version 1), for GPTQModel, vLLM and others; asymmetric schemes are refused by "
        "GPTQModel 7.7 and by vLLM on a CPU (which both load `awq`); a plan's other schemes become `dynamic` "
        "rules; one scheme or a plan, no budget",
        stored="gptq",
        budgets=False,
    ),
    "awq": Target(
        "awq",
        _FOUR_BITS,
        "AWQ's GEMM layout, 4 bits, one scheme for all layers; no budget",
        stored="awq",
        budgets=False,
    ),
    "llama.cpp": Target(
        "llama.cpp",
        tuple(BLOCK_TYPES),
        "llama.cpp and what builds on it, a GGUF file: a type for each tensor, k-quants and IQ4_XS where 256 "
        "divides the in features, the others where 32 does; from a GGUF file, "
        "or a folder of llama, mistral, qwen2 or qwen3",
        fuses=False,
        stored="gguf",
        ends=True,
    ),
}


def target_named(name: str) -> Target:
    """The target of that name. Raises UsageError listing the names."""
    if name not in TARGETS:
        raise UsageError(f"target {name!r} is unknown; expected one of {', '.join(TARGETS)}")
    return TARGETS[name]


def refuse_budget(name: str) -> None:
    """Raise UsageError for a target in whose format no budget is spent."""
    if not target_named(name).budgets:
        raise UsageError(
            f"target {name!r}: layers of this format share a scheme; expected `quantize --scheme`, or a "
            f"target with a budget: {', '.join(t.name for t in TARGETS.values() if t.budgets)}"
        )


def sites_for(target: str, sites: Sequence[SiteInfo]) -> list[SiteInfo]:
    """What the target loads quantized of a model's sites and ends, with what it fuses."""
    entry = target_named(target)
    sites = [site for site in sites if entry.ends or site.category not in END_CATEGORIES]
    if entry.fuses:
        return sites
    return [msgspec.structs.replace(site, fused_with=()) for site in sites]


def menu(target: str, shape: tuple[int, int], scale_dtype: ScaleDtype = "float16") -> tuple[Scheme, ...]:
    """Schemes in which `target` can hold a weight of `shape` [out, in]; empty if it must stay dense."""
    entry = target_named(target)
    if any(size % entry.alignment for size in shape):
        return ()
    schemes = (Scheme.named(spec, scale_dtype) for spec in entry.schemes)
    return tuple(scheme for scheme in schemes if _divides(scheme, shape[1]))


def _divides(scheme: Scheme, in_features: int) -> bool:
    try:
        scheme.group_width(in_features)
    except BudgetError:
        return False
    return True
