"""A causal language model that is never whole in memory: its outer part, and one block at a time.

The skeleton is the transformers model itself on the meta device, its blocks taken out and replaced by stubs
that pass the hidden state through and note the arguments they were called with. Running the skeleton thus
gives each block its own arguments (masks and rotary tables differ between blocks in some models); running a
block is calling it with them. The alternative, re-using block 0's arguments, is wrong for such models.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from quantriage.errors import ArchitectureError, CheckpointError
from quantriage.formats.checkpoint import Checkpoint
from quantriage.formats.weight_source import ReplacedWeights, WeightSource
from quantriage.model.layout import Piece, parameter_layout
from quantriage.model.site import End


@dataclass(frozen=True)
class BlockCall:
    """Positional arguments after the hidden state, and keyword arguments, that one block is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _StopForward(Exception):  # noqa: N818
    """Ends a forward pass once the last stub has been reached."""


class _Stub(nn.Module):
    """Stands where a block was: notes its call, returns the hidden state it was given or told to give."""

    def __init__(self, template: nn.Module) -> None:
        super().__init__()
        # The decoder reads plain attributes of its blocks (an attention type, say); keep those.
        for key, value in vars(template).items():
            if not key.startswith("_") and key not in vars(self):
                self.__dict__[key] = value
        self.call: BlockCall | None = None
        self.seen: Tensor | None = None
        self.replacement: Tensor | None = None
        self.returns_tuple = False
        self.stop = False

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.seen, self.call = hidden, BlockCall(args, kwargs)
        if self.stop:
            raise _StopForward
        given = hidden if self.replacement is None else self.replacement
        return (given,) if self.returns_tuple else given


def _find_blocks(skeleton: nn.Module) -> tuple[str, nn.ModuleList]:
    """The module list that holds most parameters: the stack of blocks. Verified by running it."""
    lists = [(n, m) for n, m in skeleton.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise ArchitectureError(
            f"{type(skeleton).__name__}: no list of blocks found in the model; quantriage runs decoder stacks"
        )
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))


class CausalModel:
    """A checkpoint opened for streaming: its `embedding`, one block at a time, its `head`.

    Peak memory is the outer part that the current step needs (embedding, or head) plus one block.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self.config: PretrainedConfig = copy.deepcopy(checkpoint.config)
        # Fused experts run as a loop of `linear` calls, which is what the capture can see.
        self.config._experts_implementation = "eager"
        self._skeleton = _build_skeleton(self.config)
        self._layout = parameter_layout(self._skeleton, checkpoint.weights.names(), checkpoint.weights.shape)
        self.block_path, blocks = _find_blocks(self._skeleton)
        self._templates = list(blocks)
        self._stubs = [_Stub(block) for block in blocks]
        parent, _, last = self.block_path.rpartition(".")
        setattr(self._skeleton.get_submodule(parent), last, nn.ModuleList(self._stubs))
        embedding, head = self._skeleton.get_input_embeddings(), self._skeleton.get_output_embeddings()
        if embedding is None or head is None:
            raise ArchitectureError(
                f"{type(self._skeleton).__name__} has no input embedding or no output head; "
                "expected a causal model"
            )
        self._embedding, self._head = embedding, head
        self.vocab_size = int(head.weight.shape[0])
        self.hidden_size = int(head.weight.shape[1])
        self._embedding_prefix = self._path_of(embedding)
        self._head_prefix = self._path_of(head)
        self._load_outer(self._stays_loaded)
        self._check_stack()

    def with_tensors(self, given: Mapping[str, Callable[[], Tensor]]) -> "CausalModel":
        """This model with the tensors in `given` for its own; itself if there are none."""
        return self.with_weights(ReplacedWeights(self.checkpoint.weights, given)) if given else self

    def with_weights(self, weights: WeightSource) -> "CausalModel":
        """This model over another source of the same tensors. Cheap: the skeleton is copied, none is built.

        An embedding and a head that are tied here are two parameters there if `weights` names both. Not to
        be called while the embedding or the head is held.
        """
        assert self._head.weight.is_meta, "the head would be copied"
        other = copy.copy(self)
        other.checkpoint = replace(self.checkpoint, weights=weights, _weights_digest=_no_digest)
        other._skeleton = copy.deepcopy(self._skeleton)
        modules = dict(other._skeleton.named_modules())
        other._stubs = [modules[f"{self.block_path}.{i}"] for i in range(self.block_count)]
        other._embedding = other._skeleton.get_input_embeddings()
        other._head = other._skeleton.get_output_embeddings()
        named = set(weights.names())
        untied = {name: (Piece(name),) for pair in self.tied().items() for name in pair if name in named}
        other._layout = self._layout | untied
        other._release(self._stays_loaded)
        other._load_outer(self._stays_loaded)
        return other

    def tied(self) -> dict[str, str]:
        """Parameters that the configuration ties to another one: the head to the embedding, or nothing."""
        return dict(getattr(self._skeleton, "all_tied_weights_keys", None) or {})

    # -- structure

    @property
    def block_count(self) -> int:
        """How many blocks the stack has."""
        return len(self._templates)

    def block_pieces(self, index: int) -> dict[str, tuple[Piece, ...]]:
        """For each parameter of block `index` (by its name within the block): the tensors that fill it."""
        prefix = f"{self.block_path}.{index}."
        return {n.removeprefix(prefix): p for n, p in self._layout.items() if n.startswith(prefix)}

    def block_vectors(self, index: int) -> dict[str, str]:
        """Norms and biases of block `index` that fill one tensor each: by their name in it, the tensor's."""
        pieces = self.block_pieces(index)
        names = [name for name, value in self.block_template(index).named_parameters() if value.ndim == 1]
        return {n: pieces[n][0].tensor for n in names if pieces[n] == (Piece(pieces[n][0].tensor),)}

    def block_template(self, index: int) -> nn.Module:
        """Block `index` without its weights (meta device)."""
        return self._templates[index]

    def outer_tensors(self) -> dict[str, str]:
        """Checkpoint tensor -> its part outside the blocks: "embedding", "head", else "norm" or "other"."""
        found: dict[str, str] = {}
        for name, pieces in self._layout.items():
            if name.startswith(self.block_path + "."):
                continue
            rest = "norm" if len(self.checkpoint.weights.shape(pieces[0].tensor)) == 1 else "other"
            part = "embedding" if self._is_embedding(name) else "head" if self._is_head(name) else rest
            if part == "embedding" or pieces[0].tensor not in found:
                found[pieces[0].tensor] = part
        return found

    def ends(self) -> tuple[End, ...]:
        """Embedding and head as weights that may be stored quantized; one where both read one tensor."""
        found: dict[str, End] = {}
        for prefix, embeds in ((self._embedding_prefix, True), (self._head_prefix, False)):
            tensor = self._layout[f"{prefix}.weight"][0].tensor
            shape = self.checkpoint.weights.shape(tensor)
            if len(shape) != 2 or not tensor.endswith(".weight"):
                continue
            place = 0 if embeds else self.block_count - 1
            end = End(tensor.removesuffix(".weight"), (shape[0], shape[1]), embeds, not embeds, place)
            before = found.get(tensor)
            found[tensor] = end if before is None else replace(before, projects=True)
        return tuple(found.values())

    @property
    def head_module(self) -> nn.Module:
        """The module that makes logits, to watch its product inside `head()`."""
        head: nn.Module = self._head
        return head

    def used_tensors(self) -> tuple[str, ...]:
        """Every checkpoint tensor that some parameter reads, blocks in order after the outer part."""
        names: dict[str, None] = {}
        for pieces in self._layout.values():
            names.update(dict.fromkeys(piece.tensor for piece in pieces))
        return tuple(names)

    @property
    def architecture(self) -> str:
        """Class name for `architectures` in a config.json."""
        return type(self._skeleton).__name__

    def other_matrices(self, sites: Collection[str]) -> tuple[str, ...]:
        """Module names of two-dimensional weights that are no site (head, embedding, routers)."""
        found = []
        for name in self.used_tensors():
            module = name.removesuffix(".weight")
            if module != name and module not in sites and len(self.checkpoint.weights.shape(name)) == 2:
                found.append(module)
        return tuple(found)

    def _path_of(self, module: nn.Module) -> str:
        paths: Iterator[str] = (n for n, child in self._skeleton.named_modules() if child is module)
        return next(paths)

    def _is_embedding(self, name: str) -> bool:
        return name.startswith(self._embedding_prefix + ".")

    def _is_head(self, name: str) -> bool:
        return name.startswith(self._head_prefix + ".")

    def _stays_loaded(self, name: str) -> bool:
        """Parameters outside the blocks that are small, such as the last norm."""
        outside = not name.startswith(self.block_path + ".")
        return outside and not self._is_embedding(name) and not self._is_head(name)

    def _check_stack(self) -> None:
        """Run the skeleton once on noise: every block must be called exactly once, in order."""
        order: list[int] = []
        hooks = [
            stub.register_forward_hook(lambda *_, i=i: order.append(i)) for i, stub in enumerate(self._stubs)
        ]
        noise = torch.zeros(1, 4, self.hidden_size, device=self.device)
        try:
            with torch.no_grad():
                self._run_to_last(inputs_embeds=noise)
        finally:
            for hook in hooks:
                hook.remove()
        # The last stub stops the pass, so it is called but its hook does not fire.
        if order != list(range(self.block_count - 1)) or self._stubs[-1].call is None:
            raise ArchitectureError(
                f"{type(self._skeleton).__name__}: blocks {self.block_path} ran in the order {order}, "
                "expected each once, first to last; this architecture needs an override"
            )
        self._forget_calls()

    # -- weights

    def _read(self, pieces: tuple[Piece, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        get = self.checkpoint.weights.get
        if len(pieces) == 1 and pieces[0].expert is None:
            value = get(pieces[0].tensor).to(dtype)  # a private copy-on-write map, if not a copy
        else:
            value = torch.empty(shape, dtype=dtype)
            for piece in pieces:
                part = value[piece.expert] if piece.expert is not None else value
                part = part if piece.rows is None else part[piece.rows[0] : piece.rows[1]]
                part.copy_(get(piece.tensor))
        bad = _not_finite(value)
        if bad:
            # Of a fused parameter's many tensors, only those at fault are named.
            faulty = dict.fromkeys(p.tensor for p in pieces if _not_finite(get(p.tensor)))
            names = ", ".join(list(faulty)[:3]) or pieces[0].tensor  # none: too large for float32
            raise CheckpointError(
                f"{names}: {bad} NaN or infinite values; a reference must be finite. "
                "Get the file again, or repair the training checkpoint it came from"
            )
        return value

    def _load_outer(self, wanted: Any, dtype: torch.dtype = torch.float32) -> None:
        for name, value in self._skeleton.state_dict(keep_vars=True).items():
            if value.is_meta and not name.startswith(self.block_path + ".") and wanted(name):
                self._assign(name, self._read(self._layout[name], value.shape, dtype))

    def _assign(self, name: str, value: Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        module = self._skeleton.get_submodule(owner)
        value = value.to(self.device)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        else:
            module._buffers[leaf] = value

    def _release(self, wanted: Any) -> None:
        for name, value in list(self._skeleton.named_parameters(remove_duplicate=False)):
            if wanted(name) and not value.is_meta:
                self._assign_meta(name, value)

    def _assign_meta(self, name: str, value: Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        module = self._skeleton.get_submodule(owner)
        module._parameters[leaf] = nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)

    def load_block(self, index: int, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Block `index` with its weights, in `dtype`, no gradients. Memory: one block and one tensor."""
        block = copy.deepcopy(self._templates[index])
        pieces = self.block_pieces(index)
        for name, value in block.state_dict(keep_vars=True).items():
            if not value.is_meta:
                continue
            owner, _, leaf = name.rpartition(".")
            module = block.get_submodule(owner)
            loaded = self._read(pieces[name], value.shape, dtype).to(self.device)
            if leaf in module._parameters:
                module._parameters[leaf] = nn.Parameter(loaded, requires_grad=False)
            else:
                module._buffers[leaf] = loaded
        return block.to(self.device).eval()

    # -- running

    def _run_to_last(self, **inputs: Tensor) -> None:
        self._stubs[-1].stop = True
        try:
            self._skeleton(**inputs, use_cache=False)
        except _StopForward:
            pass
        finally:
            self._stubs[-1].stop = False

    @contextmanager
    def embedding(self) -> Iterator[None]:
        """Hold the embedding in memory; `start` works inside."""
        self._load_outer(self._is_embedding)
        try:
            yield
        finally:
            self._release(self._is_embedding)

    @contextmanager
    def head(self, dtype: torch.dtype = torch.float32) -> Iterator[None]:
        """Hold the output head in memory, in `dtype`; `logits` works inside.

        Under autocast to `dtype` the result is that of float32, without a cast of the head at every call.
        """
        self._load_outer(self._is_head, dtype)
        try:
            yield
        finally:
            self._release(self._is_head)

    @torch.no_grad()
    def start(self, tokens: Tensor) -> tuple[Tensor, tuple[BlockCall, ...]]:
        """Hidden state [b, t, d] before block 0 for tokens [b, t], and the call of every block."""
        self._run_to_last(input_ids=tokens.to(self.device))
        return self._collect()

    def _collect(self) -> tuple[Tensor, tuple[BlockCall, ...]]:
        hidden = self._stubs[0].seen
        calls = tuple(stub.call for stub in self._stubs if stub.call is not None)
        if hidden is None or len(calls) != self.block_count:
            raise ArchitectureError(f"only {len(calls)} of {self.block_count} blocks were called")
        self._forget_calls()
        return hidden, calls

    def _forget_calls(self) -> None:
        for stub in self._stubs:
            stub.call = stub.seen = None

    @torch.no_grad()
    def start_from_noise(self, length: int) -> tuple[Tensor, tuple[BlockCall, ...]]:
        """As `start`, but from a seeded random hidden state [1, length, d]: needs no embedding in memory."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(1, length, self.hidden_size, generator=generator)
        self._run_to_last(inputs_embeds=noise.to(self.device))
        return self._collect()

    def run_block(self, block: nn.Module, hidden: Tensor, call: BlockCall) -> Tensor:
        """Output hidden state of a loaded block."""
        out = block(hidden, *call.args, **call.kwargs)
        result = out[0] if isinstance(out, tuple) else out
        if not isinstance(result, Tensor):
            raise ArchitectureError(
                f"a block returned {type(result).__name__}, expected a hidden state tensor"
            )
        return result

    def set_block_returns_tuple(self, value: bool) -> None:
        """Make the stubs return what the real blocks return."""
        for stub in self._stubs:
            stub.returns_tuple = value

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocab] of hidden states [n, d] that left the last block; differentiable in `hidden`.

        Peak memory n * vocab floats: the caller chooses n. The final norm and head act position by position.
        """
        # torch multiplies by a weight on the meta device without complaint and returns noise.
        assert not self._head.weight.is_meta, "logits are asked for outside `with head()`"
        last = self._stubs[-1]
        last.replacement = hidden.unsqueeze(0)
        try:
            out = self._skeleton(inputs_embeds=hidden.detach().unsqueeze(0), use_cache=False)
        finally:
            last.replacement = None
            self._forget_calls()
        logits: Tensor = out.logits.squeeze(0)  # an index would cost a zero-filled copy on the way back
        return logits


def _no_digest() -> str:
    raise NotImplementedError("weights of two checkpoints have no digest of their own")


def _not_finite(value: Tensor) -> int:
    """How many entries are NaN or infinite; in pieces, for isfinite makes two copies of what it is given."""
    return sum(int((~torch.isfinite(part)).sum()) for part in value.flatten().split(1 << 22))


def _build_skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The transformers model with parameters on the meta device and real (rotary) buffers."""
    try:
        with init_empty_weights(include_buffers=False):
            skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise ArchitectureError(
            f"transformers knows no causal language model of type {config.model_type!r}: {error}"
        ) from error
    skeleton.eval()
    for parameter in skeleton.parameters():
        parameter.requires_grad_(False)
    result: PreTrainedModel = skeleton
    return result
