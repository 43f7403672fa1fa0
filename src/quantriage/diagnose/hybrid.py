"""A reference with some of its units taken from a candidate: what attribution and bisect evaluate.

A unit is what can be taken over by itself: the module of a site (weight and bias), or another module or
tensor (a norm, a router, the embedding, the head). Both checkpoints stay what they are on disk; a hybrid only
says which of the two a tensor is read from. Writing it into a third checkpoint was rejected: it exists for
one evaluation, and this costs nothing.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from quantriage.errors import CheckpointError
from quantriage.formats.weight_source import WeightSource
from quantriage.model.causal import CausalModel
from quantriage.model.site import ModelMap, Site
from quantriage.numerics.stored_weight import StoredWeight

_LEAVES = ("weight", "bias")


@dataclass(frozen=True)
class Unit:
    """What is taken over as one. tensors: names as in the checkpoint, the site's weight first.

    block: None outside the blocks. site: None for what is not quantized block by block.
    """

    name: str
    tensors: tuple[str, ...]
    block: int | None
    category: str
    site: Site | None = None


@dataclass(frozen=True)
class Pair:
    """Two sources of the same tensors. tied: name of two that a checkpoint may store once -> the other."""

    reference: WeightSource
    candidate: WeightSource
    tied: Mapping[str, str]
    reference_names: frozenset[str]
    candidate_names: frozenset[str]

    def read(self, name: str, from_candidate: bool) -> Tensor:
        """A tensor of one side; of a tied pair that is stored once, the stored one."""
        source = self.candidate if from_candidate else self.reference
        return source.get(self.stored_name(name, from_candidate))

    def stored_name(self, name: str, from_candidate: bool) -> str:
        """The name under which one side stores a tensor. Raises CheckpointError if it does not."""
        names = self.candidate_names if from_candidate else self.reference_names
        if name in names:
            return name
        if self.tied.get(name) in names:
            return self.tied[name]
        side = "candidate" if from_candidate else "reference"
        raise CheckpointError(
            f"the {side} has no tensor {name!r}, the other has: they are not the same model, or the file is "
            "incomplete"
        )

    def taking(self, units: Iterable[Unit]) -> "HybridWeights":
        """The reference with these units of the candidate."""
        return HybridWeights(self, frozenset(name for unit in units for name in unit.tensors))


@dataclass(frozen=True)
class HybridWeights:
    """A WeightSource: `covered` tensors come from the pair's candidate, all others from its reference."""

    pair: Pair
    covered: frozenset[str]

    def names(self) -> tuple[str, ...]:
        """The reference's names, and those it ties that the candidate stores."""
        more = (n for n in self.pair.candidate.names() if n in self.pair.tied)
        return tuple(dict.fromkeys([*self.pair.reference.names(), *more]))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor that would be read."""
        taken = name in self.covered
        source = self.pair.candidate if taken else self.pair.reference
        return source.shape(self.pair.stored_name(name, taken))

    def get(self, name: str) -> Tensor:
        """The tensor, bit for bit as its side gives it."""
        return self.pair.read(name, name in self.covered)

    def stored(self, module: str) -> StoredWeight | None:
        """What the side it comes from stores for a module."""
        taken = f"{module}.weight" in self.covered
        return (self.pair.candidate if taken else self.pair.reference).stored(module)


def pair_of(model: CausalModel, candidate: WeightSource) -> Pair:
    """The model's own weights beside a candidate's."""
    tied = model.tied()
    reference = model.checkpoint.weights
    return Pair(
        reference,
        candidate,
        tied | {source: target for target, source in tied.items()},
        frozenset(reference.names()),
        frozenset(candidate.names()),
    )


def units_of(model: CausalModel, model_map: ModelMap, pair: Pair) -> tuple[Unit, ...]:
    """Every unit of the model, blocks in order, then the outer part. Headers only.

    Raises CheckpointError for a tensor that the candidate lacks or holds in another shape.
    """
    sites = model_map.by_name()
    members: dict[str, dict[str, None]] = {}
    place: dict[str, tuple[int | None, str]] = {}

    def add(tensor: str, block: int | None, category: str) -> None:
        module, _, leaf = tensor.rpartition(".")
        name = module if leaf in _LEAVES and module else tensor
        members.setdefault(name, {})[tensor] = None
        place.setdefault(name, (block, category))

    for index in range(model.block_count):
        for pieces in model.block_pieces(index).values():
            for piece in pieces:
                flat = len(pair.reference.shape(piece.tensor)) == 1
                add(piece.tensor, index, "norm" if flat else "other")
    outer = model.outer_tensors()
    for tensor, category in outer.items():
        add(tensor, None, category)
    for tensor in sorted(pair.candidate_names & pair.tied.keys() - outer.keys()):
        add(tensor, None, "head" if any(part == "embedding" for part in outer.values()) else "embedding")
    found = []
    for name, tensors in members.items():
        site = sites.get(name)
        block, category = place[name]
        ordered = tuple(sorted(tensors, key=lambda t: (not t.endswith(".weight"), t)))
        found.append(Unit(name, ordered, block, site.category if site else category, site))
    _check_shapes(pair, found)
    return tuple(found)


def _check_shapes(pair: Pair, units: Collection[Unit]) -> None:
    for unit in units:
        for tensor in unit.tensors:
            ours = tuple(pair.reference.shape(pair.stored_name(tensor, False)))
            theirs = tuple(pair.candidate.shape(pair.stored_name(tensor, True)))
            if ours != theirs:
                raise CheckpointError(
                    f"tensor {tensor!r} has shape {theirs} in the candidate and {ours} in the reference: "
                    "give the reference that the candidate was made from"
                )
