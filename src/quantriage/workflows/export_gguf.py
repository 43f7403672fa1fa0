"""Write a GGUF file that llama.cpp loads: the reference's own, with the planned weights as blocks.

Metadata, tokenizer and all tensors that no plan names are the reference's bytes. A site in full precision is
stored in two bytes a weight, as plans count it. A folder has no such bytes: an outline of the file is made of
it (`formats/gguf_outline.py`), and every tensor that is not planned goes in as plain floats. Copying the
reference's file rather than building it anew keeps keys that nobody here knows. Peak memory: one tensor.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path

import torch
from gguf.constants import LlamaFileType

from quantriage.checkpoint.new_folder import new_folder
from quantriage.errors import BudgetError, StorageError
from quantriage.formats.checkpoint import Checkpoint
from quantriage.formats.gguf import GGUFWeights
from quantriage.formats.gguf_dense import DenseTensors
from quantriage.formats.gguf_order import row_order
from quantriage.formats.gguf_outline import as_gguf, half_kind
from quantriage.formats.gguf_writer import rewrite_gguf
from quantriage.formats.weight_source import WeightSource, underneath
from quantriage.model.site import ModelMap
from quantriage.numerics.block_tensor import BlockTensor
from quantriage.numerics.block_types import BLOCK_TYPES
from quantriage.numerics.schemes import Scheme
from quantriage.records.digest import file_digest

_TWO_BYTES = ("F16", "BF16")
_MIXES = ("Q3_K", "Q4_K", "Q5_K")  # whose files llama.cpp names small and medium, being mixes


def refuse_unwritable(checkpoint: Checkpoint, model_map: ModelMap, schemes: Mapping[str, Scheme]) -> None:
    """Refuse a reference, site or scheme that cannot be written, before any heavy work.

    Raises BudgetError, or CheckpointError for a folder whose architecture or tokenizer has no GGUF form.
    """
    with as_gguf(checkpoint) as weights:
        _refuse(weights, model_map, schemes)


def _refuse(weights: GGUFWeights, model_map: ModelMap, schemes: Mapping[str, Scheme]) -> None:
    for name, scheme in schemes.items():
        if not scheme.in_blocks:
            kinds = ", ".join(BLOCK_TYPES)
            raise BudgetError(f"{name}: a GGUF file cannot hold {scheme}; expected one of {kinds}")
    for site in model_map.sites:
        if site.expert is not None or site.rows is not None or f"{site.name}.weight" not in weights.parts:
            raise BudgetError(
                f"{site.name}: is a part of a larger GGUF tensor (experts, joined weights), which is not "
                "planned yet for the target llama.cpp"
            )
    for end in model_map.ends:
        if f"{end.name}.weight" not in weights.parts:
            raise BudgetError(
                f"{end.name}: a table of its own, where the configuration says that embedding and head are "
                "one; a GGUF file holds one of them. Set tie_word_embeddings to false, or take this one out"
            )


def export_gguf(
    checkpoint: Checkpoint,
    model_map: ModelMap,
    schemes: Mapping[str, Scheme],
    blocks: Callable[[str], BlockTensor],
    directory: Path,
    replace: bool = False,
) -> dict[str, str]:
    """Write `directory`/NAME.gguf, NAME being the directory's own; returns sha256 by file name.

    `blocks` gives a site's weight by name, one at a time, in the scaling of the checkpoint's weights. Raises
    what `refuse_unwritable` does, StorageError if the reference lies in `directory`, CheckpointError for a
    weight that its type cannot hold.
    """
    if checkpoint.path.resolve().is_relative_to(directory.resolve()):
        raise StorageError(f"{directory}: holds the reference itself; choose another place")
    name = f"{directory.absolute().name}.gguf"
    values = checkpoint.weights
    stored, changed = underneath(values)
    checkpoint = dataclasses.replace(checkpoint, weights=stored)
    with as_gguf(checkpoint) as weights, new_folder(directory, replace) as folder:
        _refuse(weights, model_map, schemes)
        plain = _plain(checkpoint, weights, model_map, schemes, values, changed)
        tensors = _Tensors(weights, schemes, blocks, plain)
        default = half_kind(checkpoint) if weights is not checkpoint.weights else "F16"
        rewrite_gguf(weights.source.path, folder / name, tensors, _file_type(model_map, schemes, default))
        digest = file_digest(folder / name)
    return {name: digest}


def _plain(
    checkpoint: Checkpoint,
    weights: GGUFWeights,
    model_map: ModelMap,
    schemes: Mapping[str, Scheme],
    values: WeightSource,
    changed: frozenset[str],
) -> DenseTensors:
    """What changes and is not planned: all of a folder; else sites above two bytes, and what views change."""
    planned = {f"{name}.weight" for name in schemes}
    if weights is not checkpoint.weights:
        return DenseTensors(weights, values, [n for n in weights.parts if n not in planned])
    sites = [f"{part.name}.weight" for part in model_map.infos() if part.name not in schemes]

    def moves(name: str) -> bool:
        return any(weights.source.tensors[part].kind.name not in _TWO_BYTES for part in weights.parts[name])

    return DenseTensors(weights, values, {*filter(moves, sites), *(changed - planned)}, "F16")


class _Tensors(Mapping[str, tuple[str, bytes]]):
    """Type and bytes of every GGUF tensor that is written anew, planned or plain, made when asked for."""

    def __init__(
        self,
        weights: GGUFWeights,
        schemes: Mapping[str, Scheme],
        blocks: Callable[[str], BlockTensor],
        plain: DenseTensors,
    ) -> None:
        self._weights, self._blocks, self._plain = weights, blocks, plain
        self._site_of = {part: name for name in schemes for part in weights.parts[f"{name}.weight"]}
        self._latest = lru_cache(maxsize=1)(self._made)  # asked for several times in a row

    def __getitem__(self, part: str) -> tuple[str, bytes]:
        return self._latest(self._site_of[part])[part] if part in self._site_of else self._plain[part]

    def __iter__(self) -> Iterator[str]:
        yield from self._site_of
        yield from self._plain

    def __len__(self) -> int:
        return len(self._site_of) + len(self._plain)

    def __contains__(self, part: object) -> bool:
        return part in self._site_of or part in self._plain  # without making it

    def _made(self, name: str) -> dict[str, tuple[str, bytes]]:
        """Blocks run along rows, so the file's order of rows is an order of raw rows."""
        found = self._blocks(name)
        raw, tensor = found.raw, f"{name}.weight"
        shapes = self._weights.part_shapes(tensor)
        if not self._weights.as_stored(tensor):
            where = f"{self._weights.source.path}: {tensor!r}"
            order = row_order(lambda read: self._weights.assemble(tensor, read), shapes, where)
            raw = torch.empty_like(raw).index_copy_(0, order, raw)
        counts = [prod(shape[:-1]) for shape in shapes.values()]
        pieces = zip(shapes, torch.split(raw, counts), strict=True)
        return {part: (found.kind, piece.contiguous().numpy().tobytes()) for part, piece in pieces}


def _file_type(model_map: ModelMap, schemes: Mapping[str, Scheme], plain: str) -> int:
    """What llama.cpp calls a file by: the type of most weights, of equals the one of fewest bits.

    plain: the type of sites in full precision.
    """
    counts = dict.fromkeys([*BLOCK_TYPES, plain], 0)
    for site in model_map.infos():
        counts[str(schemes.get(site.name, plain))] += prod(site.shape)
    kind = max(counts, key=lambda kind: counts[kind])
    return int(LlamaFileType[f"MOSTLY_{kind}_M" if kind in _MIXES else f"MOSTLY_{kind}"])
