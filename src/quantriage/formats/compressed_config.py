"""The `quantization_config` of a compressed-tensors checkpoint, written from an assignment.

Every group names its modules in full. Class targets such as "Linear" with a growing `ignore` list are
shorter and were rejected: loaders disagree on which of two matching groups wins, and a module forgotten in
`ignore` is loaded as noise. Full names also match the fused layers of vLLM, which looks up the parts of
`qkv_proj` one by one, takes the first part's group and refuses a layer of which only some parts match.
A very large model, or one with experts, gets one regular expression per module kind instead: matching is
modules x targets, and transformers finds the group of stacked experts by a regex that says "experts".
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from quantriage.formats.compressed_tensors import FORMAT
from quantriage.numerics.schemes import PerChannel, PerGroup, PerTensor, Scheme

METHOD = "compressed-tensors"
MOST_NAMES = 2000


def config(
    assignments: Mapping[str, Scheme], ignored: Iterable[str], act_order: bool = False
) -> dict[str, object]:
    """`quantization_config` for modules by scheme; `ignored` modules stay dense (lm_head always does).

    `act_order` records that GPTQ rounded columns in order of activation with static groups; it changes
    nothing in how the weights are read.
    """
    by_scheme: dict[Scheme, list[str]] = {}
    for module, scheme in assignments.items():
        by_scheme.setdefault(scheme, []).append(module)
    compact = len(assignments) > MOST_NAMES
    groups = {
        f"group_{number}": {
            "targets": targets(modules, compact),
            "weights": _weights(scheme, act_order),
            "input_activations": None,
            "output_activations": None,
            "format": FORMAT,
        }
        for number, (scheme, modules) in enumerate(by_scheme.items())
    }
    dense = dict.fromkeys([*ignored, "lm_head"])
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "config_groups": groups,
        "ignore": [module for module in dense if module not in assignments],
    }


def _weights(scheme: Scheme, act_order: bool) -> dict[str, object]:
    """The `weights` entry of a group."""
    match scheme.granularity:
        case PerTensor():
            strategy, size = "tensor", None
        case PerChannel():
            strategy, size = "channel", None
        case PerGroup(size):
            strategy = "group"
    return {
        "num_bits": scheme.grid.bits,
        "type": "int",
        "symmetric": scheme.grid.symmetric,
        "strategy": strategy,
        "group_size": size,
        "block_structure": None,
        "dynamic": False,
        "actorder": "static" if act_order and size is not None else None,
        "observer": "minmax",
        "observer_kwargs": {},
    }


def targets(modules: Sequence[str], compact: bool) -> list[str]:
    """Module names; those of experts or of a very large model folded into regular expressions."""
    folded = [module for module in modules if compact or ".experts." in module]
    plain = set(modules).difference(folded)
    return [module for module in modules if module in plain] + _fold(folded)


def _fold(modules: Sequence[str]) -> list[str]:
    """Regular expressions that match exactly `modules`, which differ mostly in their numbers.

    Number by number from the right: names equal before and after the number share one alternation.
    """
    done: list[str] = []
    pending = [(module, "") for module in modules]  # (name not yet folded, expression of the rest)
    while pending:
        groups: dict[tuple[str, str], list[str]] = {}
        for head, tail in pending:
            found = re.fullmatch(r"(.*\.)(\d+)(\..*)", head)
            if found is None:
                done.append(f"re:^{re.escape(head)}{tail}$")
            else:
                before, number, after = found.groups()
                groups.setdefault((before, re.escape(after) + tail), []).append(number)
        pending = [(before, f"({'|'.join(numbers)}){tail}") for (before, tail), numbers in groups.items()]
    return done
