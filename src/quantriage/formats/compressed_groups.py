"""The `quantization_config` of a compressed-tensors checkpoint, read to how each module's weight is stored.

Quantized activations and caches are the engine's business and are passed over; weights alone are read. What
would make the stored weights something else than the model's (sparsity masks, rotations at run time, weights
not yet rounded) is refused, because reading on would give noise that looks like a bad quantization.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from quantriage.errors import CheckpointError
from quantriage.formats import compressed_fp4 as fp4
from quantriage.formats import compressed_plain as plain
from quantriage.formats import compressed_tensors as packed
from quantriage.formats.compressed_parts import StoredScheme
from quantriage.formats.module_patterns import steps
from quantriage.numerics.coded_weight import PerBlock, ScaleLayout
from quantriage.numerics.float_grids import E2M1, E4M3, FloatGrid
from quantriage.numerics.schemes import IntGrid, PerChannel, PerGroup, PerTensor

_FLOAT8, _FLOAT4 = ("float", 8), ("float", 4)
_INTS = tuple(("int", bits) for bits in range(2, 9))
FORMATS: dict[str, tuple[tuple[str, int], ...]] = {  # (type, bits) that each format may hold
    packed.FORMAT: _INTS,
    plain.INT: _INTS,
    plain.FLOAT: (_FLOAT8,),
    plain.NAIVE: (*_INTS, _FLOAT8),
    plain.MXFP8: (_FLOAT8,),
    fp4.NVFP4: (_FLOAT4,),
    fp4.MXFP4: (_FLOAT4,),
}
_SPARSE = ("sparse-bitmask", "sparse-24-bitmask", "marlin-24")
_OFFLINE = ("weight_input", "weight_output")  # places of a rotation that is already in the weights
_MOST_REPEATS, _MOST_WAYS, _LONGEST_NAME = 6, 1_000_000, 300
_USUAL_NAME, _MOST_STEPS = 64, 100_000_000  # ways to divide a longer name between repeats: about a second


@dataclass(frozen=True)
class SchemeGroup:
    """One config group as read: whom it targets and how their weights are stored."""

    targets: tuple[str, ...]
    scheme: StoredScheme


def read_groups(quantization_config: Mapping[str, object], where: str) -> tuple[SchemeGroup, ...]:
    """The groups that quantize weights. Raises CheckpointError for what is not read."""
    _refuse_other_weights(quantization_config, where)
    groups = quantization_config.get("config_groups")
    if groups == {} and quantization_config.get("kv_cache_scheme"):
        return ()
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(f"{where}: quantization_config has no config_groups")
    default = quantization_config.get("format")
    found = (_read_group(f"{where}: {name}", group, default) for name, group in groups.items())
    return tuple(group for group in found if group is not None)


def scheme_for(module: str, groups: Sequence[SchemeGroup], where: str) -> StoredScheme:
    """How a module that is stored quantized is stored: by its name, by a regex, else by its class."""
    if len(module) > _LONGEST_NAME:
        raise CheckpointError(f"{where}: a module name of {len(module)} letters; {_LONGEST_NAME} are read")
    for group in groups:
        if module in group.targets:
            return group.scheme
    for group in groups:
        for target in group.targets:
            if target.startswith("re:") and _matches(target[3:], module, where):
                return group.scheme
    embedding = "embed" in module.rpartition(".")[2]
    for kind in ("Embedding", "Linear") if embedding else ("Linear",):
        for group in groups:
            if kind in group.targets:
                return group.scheme
    raise CheckpointError(f"{where}: module {module!r} is stored quantized, but no config group targets it")


def _matches(expression: str, module: str, where: str) -> bool:
    """Whether a checked expression fits a name. Raises CheckpointError if that could take very long."""
    repeats = len(re.findall(r"[*+?{]\??", expression))
    if len(module) > _USUAL_NAME and steps(repeats, 1, len(module)) > _MOST_STEPS:
        raise CheckpointError(
            f"{where}: target {expression[:200]!r} has too many repeats for a name of {len(module)} letters"
        )
    return re.match(expression, module) is not None


def _read_group(where: str, group: object, default_format: object) -> SchemeGroup | None:
    """Check one group and translate its scheme; None if it quantizes activations alone."""
    if not isinstance(group, dict):
        raise CheckpointError(f"{where}: expected a group with weights")
    weights = group.get("weights")
    if weights is None and (group.get("input_activations") or group.get("output_activations")):
        return None
    if not isinstance(weights, dict):
        raise CheckpointError(f"{where}: expected a group with weights")
    targets = group.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise CheckpointError(f"{where}: targets are not a list of names")
    for target in targets:
        if target.startswith("re:"):
            _check_expression(where, target[3:])
    return SchemeGroup(tuple(targets), _read_scheme(where, weights, group.get("format") or default_format))


def _read_scheme(where: str, weights: Mapping[str, object], stored: object) -> StoredScheme:
    """The stored scheme of a `weights` entry; the dtype of its scale is what each module stores."""
    if not isinstance(stored, str) or stored not in FORMATS:
        raise CheckpointError(f"{where}: format {stored!r} is not read yet; {', '.join(FORMATS)} are")
    kind, bits = weights.get("type", "int"), weights.get("num_bits")
    if type(bits) is not int or (kind, bits) not in FORMATS[stored]:
        raise CheckpointError(f"{where}: {kind!r} weights of {bits!r} bits are not read yet in {stored!r}")
    symmetric = weights.get("symmetric") is not False
    if kind == "float" and not symmetric:
        raise CheckpointError(f"{where}: float weights with zero points are not read")
    grid: IntGrid | FloatGrid = IntGrid(bits, symmetric)
    if kind == "float":
        grid = E2M1 if bits == 4 else E4M3
    layout = _read_layout(where, weights)
    act_order = weights.get("actorder") in ("group", "dynamic", True)
    if act_order and not isinstance(layout, PerGroup):
        raise CheckpointError(f"{where}: actorder 'group' needs groups, the strategy is {layout}")
    if stored == packed.FORMAT and isinstance(layout, PerBlock):
        raise CheckpointError(f"{where}: strategy 'block' is not read in {stored!r}")
    return StoredScheme(stored, grid, layout, act_order)


def _read_layout(where: str, weights: Mapping[str, object]) -> ScaleLayout:
    """Which weights share a scale."""
    size = weights.get("group_size")
    strategy = weights.get("strategy") or _implied_strategy(size)
    if strategy in ("group", "tensor_group") and type(size) is int and size > 0:
        return PerGroup(size)
    if strategy == "block":
        return _read_block(where, weights.get("block_structure"))
    if strategy == "channel":
        return PerChannel()
    if strategy == "tensor":
        return PerTensor()
    raise CheckpointError(f"{where}: strategy {strategy!r} with group size {size!r} is not read yet")


def _read_block(where: str, block: object) -> PerBlock:
    """[rows, columns], or "128x128" as early releases wrote it."""
    if isinstance(block, str) and re.fullmatch(r"\d{1,9}x\d{1,9}", block):
        block = [int(length) for length in block.split("x")]
    if not isinstance(block, list) or len(block) != 2 or any(type(n) is not int or n < 1 for n in block):
        raise CheckpointError(
            f"{where}: strategy 'block' with block_structure {block!r}; expected [128, 128]"
        )
    return PerBlock(block[0], block[1])


def _implied_strategy(size: object) -> str:
    """The strategy that upstream infers from the group size alone."""
    if size is None:
        return "tensor"
    return "channel" if size == -1 else "group"


def _refuse_other_weights(quantization_config: Mapping[str, object], where: str) -> None:
    """Raise CheckpointError where the stored weights are not the model's."""
    sparsity = quantization_config.get("sparsity_config")
    masked = sparsity.get("format") if isinstance(sparsity, dict) else None
    for found in (masked, quantization_config.get("format")):
        if found in _SPARSE:
            raise CheckpointError(
                f"{where}: sparse format {found!r} is not read; save the model without sparsity compression"
            )
    if quantization_config.get("quantization_status") in ("initialized", "calibration", "frozen"):
        raise CheckpointError(
            f"{where}: quantization_status {quantization_config['quantization_status']!r}: the weights were "
            "saved before they were rounded; save the model compressed"
        )
    for place in _rotations(quantization_config.get("transform_config")):
        if place not in _OFFLINE:
            raise CheckpointError(
                f"{where}: transform_config rotates {place!r} while the model runs, which is not read; "
                "only rotations folded into the weights are"
            )


def _rotations(transforms: object) -> Iterator[object]:
    """Where the transforms of a `transform_config` act."""
    groups = transforms.get("config_groups") if isinstance(transforms, dict) else None
    for group in groups.values() if isinstance(groups, dict) else ():
        places = group.get("apply") if isinstance(group, dict) else None
        for place in places if isinstance(places, list) else ():
            yield place.get("location") if isinstance(place, dict) else None


def _check_expression(where: str, expression: str) -> None:
    """Refuse what is no expression, and what could take for ever on a name: files come from strangers.

    Python's matcher tries every way through an expression. Repeated groups make those ways exponential, so
    they are refused; repeats and alternatives are limited to more than any module name needs.
    """
    try:
        re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{where}: target {expression[:200]!r} is no regular expression") from error
    bare = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "a", expression)  # escapes and classes read as one letter
    bare = re.sub(r"\(\?[:=!]", "(", bare)
    if re.search(r"\)[*+{]", bare) or any(_is_slow(branch) for branch in _branches(bare)):
        raise CheckpointError(
            f"{where}: target {expression[:200]!r} repeats a group, or has more than {_MOST_REPEATS} repeats "
            f"or {_MOST_WAYS} combinations of alternatives; matching it may never end"
        )


def _branches(bare: str) -> list[str]:
    """The alternatives outside all groups: they are tried one after the other, not combined."""
    branches, depth = [""], 0
    for letter in bare:
        depth += (letter == "(") - (letter == ")")
        if letter == "|" and depth == 0:
            branches.append("")
        else:
            branches[-1] += letter
    return branches


def _is_slow(branch: str) -> bool:
    """Whether repeats or combinations of the alternatives of its groups are too many."""
    ways, alternatives = 1, [1]
    for letter in branch:
        if letter == "(":
            alternatives.append(1)
        elif letter == "|":
            alternatives[-1] += 1
        elif letter == ")":
            ways = min(ways * alternatives.pop(), _MOST_WAYS + 1)
    return len(re.findall(r"[*+?{]\??", branch)) > _MOST_REPEATS or ways > _MOST_WAYS
