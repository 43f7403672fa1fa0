"""The `quantization_config` of a compressed-tensors checkpoint: written from an assignment, read to schemes.

Every group names its modules in full. Class targets such as "Linear" with a growing `ignore` list are
shorter and were rejected: loaders disagree on which of two matching groups wins, and a module forgotten in
`ignore` is loaded as noise. Full names also match the fused layers of vLLM, which looks up the parts of
`qkv_proj` one by one, takes the first part's group and refuses a layer of which only some parts match.
A very large model, or one with experts, gets one regular expression per module kind instead: matching is
modules x targets, and transformers finds the group of stacked experts by a regex that says "experts".
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quantriage.errors import CheckpointError
from quantriage.formats.compressed_tensors import FORMAT
from quantriage.numerics.schemes import Granularity, IntGrid, PerChannel, PerGroup, PerTensor, Scheme

METHOD = "compressed-tensors"
_MOST_NAMES = 2000


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
    compact = len(assignments) > _MOST_NAMES
    groups = {
        f"group_{number}": {
            "targets": _targets(modules, compact),
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


def _targets(modules: Sequence[str], compact: bool) -> list[str]:
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


@dataclass(frozen=True)
class SchemeGroup:
    """One config group as read: whom it targets and how their weights are stored."""

    targets: tuple[str, ...]
    scheme: Scheme


def read_groups(quantization_config: Mapping[str, object], where: str) -> tuple[SchemeGroup, ...]:
    """The groups of a checkpoint's `quantization_config`. Raises CheckpointError for what is not read."""
    groups = quantization_config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(f"{where}: quantization_config has no config_groups")
    default = quantization_config.get("format")
    return tuple(_read_group(f"{where}: {name}", group, default) for name, group in groups.items())


def scheme_for(module: str, groups: Sequence[SchemeGroup], where: str) -> Scheme:
    """The scheme of a module that is stored packed: by its name, by a regex, else by its class."""
    for group in groups:
        if module in group.targets:
            return group.scheme
    for group in groups:
        if any(t.startswith("re:") and re.match(t[3:], module) for t in group.targets):
            return group.scheme
    for group in groups:
        if "Linear" in group.targets:
            return group.scheme
    raise CheckpointError(f"{where}: module {module!r} is stored packed, but no config group targets it")


def _read_group(where: str, group: object, default_format: object) -> SchemeGroup:
    """Check one group and translate its scheme."""
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(group, dict) or not isinstance(weights, dict):
        raise CheckpointError(f"{where}: expected a group with weights")
    targets = group.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise CheckpointError(f"{where}: targets are not a list of names")
    for target in targets:
        if target.startswith("re:"):
            _check_expression(where, target[3:])
    stored = group.get("format") or default_format
    if stored != FORMAT:
        raise CheckpointError(f"{where}: format {stored!r} is not read yet; {FORMAT!r} is")
    if group.get("input_activations") or group.get("output_activations"):
        raise CheckpointError(f"{where}: quantized activations are not read yet; weight-only groups are")
    return SchemeGroup(tuple(targets), _read_scheme(where, weights))


def _read_scheme(where: str, weights: Mapping[str, object]) -> Scheme:
    """The scheme of a `weights` entry; its scale dtype is what each module stores."""
    bits, size = weights.get("num_bits"), weights.get("group_size")
    strategy = weights.get("strategy") or _implied_strategy(size)
    if weights.get("type", "int") != "int" or type(bits) is not int or not 2 <= bits <= 8:
        raise CheckpointError(f"{where}: {weights.get('type')!r} weights of {bits!r} bits are not read yet")
    if weights.get("actorder") in ("group", "dynamic"):
        raise CheckpointError(f"{where}: actorder 'group' (columns stored permuted) is not read yet")
    granularity: Granularity
    if strategy == "group" and type(size) is int and size > 0:
        granularity = PerGroup(size)
    elif strategy == "channel":
        granularity = PerChannel()
    elif strategy == "tensor":
        granularity = PerTensor()
    else:
        raise CheckpointError(f"{where}: strategy {strategy!r} with group size {size!r} is not read yet")
    return Scheme(IntGrid(bits, weights.get("symmetric") is not False), granularity)


def _implied_strategy(size: object) -> str:
    """The strategy that upstream infers from the group size alone."""
    if size is None:
        return "tensor"
    return "channel" if size == -1 else "group"


def _check_expression(where: str, expression: str) -> None:
    try:
        re.compile(expression)
    except re.error as error:
        raise CheckpointError(f"{where}: target {expression[:200]!r} is no regular expression") from error
