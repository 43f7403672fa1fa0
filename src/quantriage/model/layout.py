"""Which checkpoint tensors make up each parameter of the running model.

transformers renames tensors on loading and fuses per-expert matrices into 3-D parameters. Its own conversion
table is asked, and for a fused parameter its operations are *run on tiny marker tensors*: where each marker
lands says which expert and which rows a checkpoint tensor fills. Nothing is listed by architecture here.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from quantriage.errors import ArchitectureError, CheckpointError


@dataclass(frozen=True)
class Piece:
    """One checkpoint tensor and the place it fills: the whole parameter, or rows of one expert of it."""

    tensor: str
    expert: int | None = None
    rows: tuple[int, int] | None = None


Layout = dict[str, tuple[Piece, ...]]


def parameter_layout(
    skeleton: PreTrainedModel, names: Sequence[str], shape_of: Callable[[str], tuple[int, ...]]
) -> Layout:
    """Pieces of every parameter and persistent buffer of `skeleton` found among checkpoint tensors `names`.

    Tied parameters share the pieces of their source. Raises CheckpointError for a parameter that nothing
    fills, or whose shape differs from the configuration's.
    """
    transforms = get_model_conversion_mapping(skeleton)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    expected = skeleton.state_dict()
    prefix = skeleton.base_model_prefix
    fused: dict[str, dict[str, list[str]]] = {}
    layout: Layout = {}
    for name in sorted(names, key=dot_natural_key):
        if name in expected:
            target, pattern = name, None
        else:
            target, pattern = rename_source_key(name, renamings, converters, prefix, expected)
        if target not in expected:
            continue
        if pattern is None:
            layout[target] = (Piece(name),)
        else:
            fused.setdefault(target, {}).setdefault(pattern, []).append(name)
    for target, sources in fused.items():
        converter = by_pattern[next(iter(sources))]
        layout[target] = _fused_pieces(target, converter, sources, shape_of)
    _add_tied(skeleton, layout)
    _check(expected, layout, shape_of)
    return layout


def _fused_pieces(
    target: str,
    converter: WeightConverter,
    sources: dict[str, list[str]],
    shape_of: Callable[[str], tuple[int, ...]],
) -> tuple[Piece, ...]:
    """Run the converter on one-element markers and read off where each checkpoint tensor went."""
    numbered = [name for names in sources.values() for name in names]
    collected = {
        pattern: [torch.tensor([[float(numbered.index(name))]]) for name in names]
        for pattern, names in sources.items()
    }
    operations = deepcopy(converter.operations)
    for operation in operations:
        collected = operation.convert(
            collected,
            source_patterns=converter.source_patterns,
            target_patterns=converter.target_patterns,
            full_layer_name=target,
        )
    results = [value[0] if isinstance(value, list) else value for value in collected.values()]
    if len(results) != 1 or results[0].ndim != 3 or results[0].numel() != len(numbered):
        raise ArchitectureError(
            f"{target}: the checkpoint's experts are joined in a way that is not a stack of row blocks "
            f"({[type(o).__name__ for o in operations]}); please report this architecture"
        )
    markers: Tensor = results[0]
    pieces: list[Piece] = []
    for expert in range(markers.shape[0]):
        start = 0
        for part in range(markers.shape[1]):
            name = numbered[int(markers[expert, part, 0])]
            rows = shape_of(name)[0]
            whole = markers.shape[1] == 1
            pieces.append(Piece(name, expert, None if whole else (start, start + rows)))
            start += rows
    return tuple(pieces)


def _add_tied(skeleton: PreTrainedModel, layout: Layout) -> None:
    """Give tied parameters that the checkpoint leaves out the pieces of the parameter they are tied to."""
    tied = getattr(skeleton, "all_tied_weights_keys", None) or {}
    for target, source in tied.items():
        if target not in layout and source in layout:
            layout[target] = layout[source]
        elif source not in layout and target in layout:
            layout[source] = layout[target]


def _check(expected: dict[str, Tensor], layout: Layout, shape_of: Callable[[str], tuple[int, ...]]) -> None:
    for name, tensor in expected.items():
        if name not in layout:
            raise CheckpointError(
                f"parameter {name} of shape {tuple(tensor.shape)} is in the configuration but no tensor of "
                "the checkpoint fills it; the download may be incomplete or belong to another model"
            )
        first = layout[name][0]
        if first.expert is None and tuple(shape_of(first.tensor)) != tuple(tensor.shape):
            raise CheckpointError(
                f"tensor {first.tensor} has shape {tuple(shape_of(first.tensor))}, but the configuration "
                f"expects {tuple(tensor.shape)}"
            )
