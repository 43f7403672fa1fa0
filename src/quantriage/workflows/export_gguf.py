"""Write a GGUF file that llama.cpp loads: the reference's own, with the planned weights as blocks.

Metadata, tokenizer and all tensors outside the sites are the reference's bytes. A site in full precision is
stored in two bytes a weight, as plans count it. Building a file anew was rejected: whatever key is forgotten
on the way is missed by somebody. Peak memory: one tensor.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path

import torch
from gguf.constants import LlamaFileType
from torch import Tensor

from quantriage.checkpoint.new_folder import new_folder
from quantriage.errors import BudgetError, CheckpointError, StorageError
from quantriage.formats.checkpoint import Checkpoint
from quantriage.formats.gguf import GGUFWeights
from quantriage.formats.gguf_encode import ENCODERS
from quantriage.formats.gguf_order import row_order
from quantriage.formats.gguf_parts import encode_parts
from quantriage.formats.gguf_writer import rewrite_gguf
from quantriage.model.site import ModelMap, Site
from quantriage.numerics.block_tensor import BlockTensor
from quantriage.numerics.block_types import BLOCK_TYPES
from quantriage.numerics.schemes import Scheme
from quantriage.records.digest import file_digest

_TWO_BYTES = ("F16", "BF16")
_MIXES = ("Q3_K", "Q4_K", "Q5_K")  # whose files llama.cpp names small and medium, being mixes


def gguf_weights(checkpoint: Checkpoint) -> GGUFWeights:
    """The reference as a GGUF file. Raises BudgetError for a folder, saying what to do."""
    if not isinstance(checkpoint.weights, GGUFWeights):
        raise BudgetError(
            f"{checkpoint.path}: the target llama.cpp needs a GGUF reference, whose metadata and tokenizer "
            "go into the result; convert the folder first (llama.cpp's convert_hf_to_gguf.py --outtype f32)"
        )
    return checkpoint.weights


def refuse_unwritable(checkpoint: Checkpoint, model_map: ModelMap, schemes: Mapping[str, Scheme]) -> None:
    """Raise BudgetError before any heavy work for a reference, site or scheme that cannot be written."""
    weights = gguf_weights(checkpoint)
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


def export_gguf(
    checkpoint: Checkpoint,
    model_map: ModelMap,
    schemes: Mapping[str, Scheme],
    blocks: Callable[[str], BlockTensor],
    directory: Path,
    replace: bool = False,
) -> dict[str, str]:
    """Write `directory`/NAME.gguf, NAME being the directory's own; returns sha256 by file name.

    `blocks` gives a site's weight by name, one at a time. Raises what `refuse_unwritable` does, StorageError
    if the reference lies in `directory`, CheckpointError for a weight that its type cannot hold.
    """
    refuse_unwritable(checkpoint, model_map, schemes)
    if checkpoint.path.resolve().is_relative_to(directory.resolve()):
        raise StorageError(f"{directory}: holds the reference itself; choose another place")
    tensors = _SiteTensors(gguf_weights(checkpoint), model_map.by_name(), schemes, blocks)
    name = f"{directory.absolute().name}.gguf"
    with new_folder(directory, replace) as folder:
        rewrite_gguf(checkpoint.path, folder / name, tensors, _file_type(model_map, schemes))
        digest = file_digest(folder / name)
    return {name: digest}


class _SiteTensors(Mapping[str, tuple[str, bytes]]):
    """Type and bytes of every GGUF tensor that a site is written to, made when asked for."""

    def __init__(
        self,
        weights: GGUFWeights,
        sites: Mapping[str, Site],
        schemes: Mapping[str, Scheme],
        blocks: Callable[[str], BlockTensor],
    ) -> None:
        self._weights, self._sites, self._schemes, self._blocks = weights, sites, schemes, blocks
        self._site_of = {part: name for name in sites if self._moves(name) for part in self._parts(name)}
        self._latest = lru_cache(maxsize=1)(self._made)  # asked for several times in a row

    def __getitem__(self, part: str) -> tuple[str, bytes]:
        return self._latest(self._site_of[part])[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self._site_of)

    def __len__(self) -> int:
        return len(self._site_of)

    def __contains__(self, part: object) -> bool:
        return part in self._site_of  # without making it

    def _parts(self, name: str) -> tuple[str, ...]:
        return self._weights.parts[f"{name}.weight"]

    def _moves(self, name: str) -> bool:
        """Whether a site's bytes change: all but those in full precision that take two bytes already."""
        kinds = {self._weights.source.tensors[part].kind.name for part in self._parts(name)}
        return name in self._schemes or not kinds <= set(_TWO_BYTES)

    def _made(self, name: str) -> dict[str, tuple[str, bytes]]:
        if name not in self._schemes:
            return self._dense(name)
        return self._planned(name)

    def _dense(self, name: str) -> dict[str, tuple[str, bytes]]:
        tensor = f"{name}.weight"
        try:
            parts = encode_parts(self._weights, tensor, self._weights.get(tensor))
            return {part: ("F16", _bytes(ENCODERS["F16"](value, None))) for part, value in parts.items()}
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from error

    def _planned(self, name: str) -> dict[str, tuple[str, bytes]]:
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
        return {part: (found.kind, _bytes(piece)) for part, piece in pieces}


def _bytes(raw: Tensor) -> bytes:
    return raw.contiguous().numpy().tobytes()


def _file_type(model_map: ModelMap, schemes: Mapping[str, Scheme]) -> int:
    """What llama.cpp calls a file by: the type of most weights, of equals the one of fewest bits."""
    counts = dict.fromkeys([*BLOCK_TYPES, "F16"], 0)
    for site in model_map.sites:
        counts[str(schemes.get(site.name, "F16"))] += prod(site.shape)
    kind = max(counts, key=lambda kind: counts[kind])
    return int(LlamaFileType[f"MOSTLY_{kind}_M" if kind in _MIXES else f"MOSTLY_{kind}"])
