"""The only loops over a model's blocks: forward, with any of its weights replaced, and backward.

Hidden states of all sequences stand at one block boundary; a block is loaded, every batch passes it, the
block is dropped. Peak memory is one block, one batch's activations and the state budget. The backward pass
keeps the states at every boundary (spilled under the budget) and recomputes one block at a time from them,
so gradients need no more memory than a forward pass.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from quantriage.data.token_set import TokenSet
from quantriage.model.capture import CaptureWeightCalls, WeightCall
from quantriage.model.causal import BlockCall, CausalModel
from quantriage.model.site import Site, write_site
from quantriage.stream.compute import Compute
from quantriage.stream.fisher_probe import fisher_probes, random_signs
from quantriage.stream.progress import Progress, silent
from quantriage.stream.states import StateStore

OnHead = Callable[[WeightCall, Tensor], None]
"""Takes a product with the head and the gradient at its output."""
SiteWeights = Mapping[str, Callable[[], Tensor]]
"""Site name -> function that gives the weight [out, in] to use instead of the checkpoint's."""


@dataclass(frozen=True)
class StreamSettings:
    """`batch`: sequences that pass a block together. `head_logits`: logits that exist at once."""

    batch: int = 8
    head_logits: int = 1 << 24

    @staticmethod
    def for_length(length: int) -> "StreamSettings":
        """About 2048 tokens a batch: larger ones fall out of the processor's cache (docs/lab-log.md)."""
        return StreamSettings(batch=max(1, 2048 // length))


class Stream:
    """One token set on its way through one model. Methods leave states where the next one expects them."""

    def __init__(
        self,
        model: CausalModel,
        sites: tuple[Site, ...],
        tokens: TokenSet,
        compute: Compute,
        states: StateStore,
        settings: StreamSettings = StreamSettings(),
        progress: Progress = silent,
    ) -> None:
        self.model, self.tokens, self.compute, self.states = model, tokens, compute, states
        self.settings, self.progress = settings, progress
        self.sites = sites
        self.head_rows = max(1, settings.head_logits // model.vocab_size)
        self._calls: dict[int, tuple[BlockCall, ...]] = {}
        count = tokens.tokens.shape[0]
        self.batches = tuple(range(0, count, settings.batch))

    def branch(self, model: CausalModel, states: StateStore) -> "Stream":
        """The same tokens, with the blocks' arguments known here, through another model of this kind."""
        other = Stream(model, self.sites, self.tokens, self.compute, states, self.settings, self.progress)
        other._calls = self._calls
        return other

    def resume(self, origin: "Stream", first: int) -> None:
        """Put the states of `origin` at boundary `first` through the blocks from there on."""
        for start in self.batches:
            self.states.put(f"{first}/{start}", origin.hidden(first, start))
        for index in range(first, self.model.block_count):
            self.advance(index, self.load(index))

    def rows(self, start: int) -> Tensor:
        """Tokens [b, t] of the batch that begins at sequence `start`."""
        return self.tokens.tokens[start : start + self.settings.batch]

    # -- forward

    def embed(self) -> None:
        """Put the states of boundary 0 in the store."""
        with self.model.embedding():
            self.start()

    def start(self) -> None:
        """As `embed`, inside `model.embedding()`: several streams share one reading of the table."""
        for start in self.batches:
            hidden, calls = self.model.start(self.rows(start))
            self._calls.setdefault(hidden.shape[0], calls)
            self.states.put(f"0/{start}", hidden)

    def call(self, block: int, batch_size: int) -> BlockCall:
        """The arguments of block `block` for a batch of `batch_size` sequences."""
        return self._calls[batch_size][block]

    def load(self, index: int, weights: SiteWeights | None = None) -> nn.Module:
        """Block `index`, with replacements where `weights` has them."""
        block = self.model.load_block(index)
        for site in self.sites:
            if weights is not None and site.block == index and site.name in weights:
                write_site(block, site, weights[site.name]())
        return block

    def for_products(self, block: nn.Module) -> nn.Module:
        """`block` itself in float32; under autocast it shares all but its sites' weights, cast once here.

        Autocast would cast a frozen weight at every product: a tenth of a visit's time.
        """
        if self.compute.dtype == torch.float32:
            return block
        products = {site.parameter for site in self.sites}
        shared: dict[int, object] = {id(tensor): tensor for tensor in block.buffers()}
        for name, weight in block.named_parameters():
            cast = weight.to(self.compute.dtype) if name in products else weight
            shared[id(weight)] = nn.Parameter(cast, requires_grad=False)
        return copy.deepcopy(block, shared)

    @torch.no_grad()
    def run(self, index: int, block: nn.Module, hidden: Tensor) -> Tensor:
        """Hidden state [b, t, d] after block `index`, float32."""
        with self.compute.autocast():
            out = self.model.run_block(block, hidden, self.call(index, hidden.shape[0]))
        return out.float()

    def advance(self, index: int, block: nn.Module, keep: bool = False) -> None:
        """Move every batch from boundary `index` to `index + 1`; `keep` the states behind."""
        block = self.for_products(block)
        for start in self.batches:
            self.states.put(f"{index + 1}/{start}", self.run(index, block, self.hidden(index, start)))
            if not keep:
                self.states.drop(f"{index}/{start}")

    def hidden(self, boundary: int, start: int) -> Tensor:
        """State of one batch at one boundary, on the compute device."""
        return self.states.get(f"{boundary}/{start}").to(self.compute.device)

    def forward(self, weights: SiteWeights | None = None, keep: bool = False, stage: str = "forward") -> None:
        """From tokens to the last boundary, through replaced weights where given."""
        self.embed()
        self.through(weights, keep, stage)

    def through(self, weights: SiteWeights | None = None, keep: bool = False, stage: str = "forward") -> None:
        """From boundary 0, where `embed` has put the states, to the last."""
        for index in range(self.model.block_count):
            self.advance(index, self.load(index, weights), keep)
            self.progress(stage, index + 1, self.model.block_count)

    def final_states(self) -> Iterator[tuple[int, Tensor]]:
        """(first sequence, hidden [b, t, d]) of each batch after the last block."""
        for start in self.batches:
            yield start, self.hidden(self.model.block_count, start)

    @torch.no_grad()
    def watch(self, index: int, block: nn.Module, on_call: Callable[[int, WeightCall], None]) -> None:
        """Run every batch through a block and report its weight products; states stay where they are."""
        block = self.for_products(block)
        for start in self.batches:
            with CaptureWeightCalls(block, partial(on_call, start)):
                self.run(index, block, self.hidden(index, start))

    # -- backward

    def head_gradients(self, generator: torch.Generator, on_head: OnHead | None = None) -> None:
        """Gradients of random probes of the logits (fisher_probe.py) at the last boundary, as `g/<start>`."""
        with self.model.head(self.compute.dtype):
            for start, hidden in self.final_states():
                self.states.put(f"g/{start}", self.head_gradient(hidden, generator, on_head))
                self.progress("gradients at the head", start + hidden.shape[0], self.tokens.sequences)

    def head_gradient(
        self, hidden: Tensor, generator: torch.Generator, on_head: OnHead | None = None
    ) -> Tensor:
        """Gradient [b, t, d] of a random probe of the logits at `hidden` [b, t, d]; inside `model.head()`.

        on_head: takes the product with the head, and the probe at its output.
        """
        flat = hidden.reshape(-1, hidden.shape[-1])
        parts = [self._fisher_gradient(h, generator, on_head) for h in flat.split(self.head_rows)]
        return torch.cat(parts).view_as(hidden)

    def _fisher_gradient(self, hidden: Tensor, generator: torch.Generator, on_head: OnHead | None) -> Tensor:
        hidden = hidden.detach().requires_grad_(True)
        calls: list[WeightCall] = []
        with ExitStack() as stack:
            stack.enter_context(self.compute.autocast())
            if on_head is not None:
                stack.enter_context(CaptureWeightCalls(self.model.head_module, calls.append))
            logits = self.model.logits(hidden)
        signs = random_signs(len(logits), logits.shape[1], generator).to(logits.device)
        wanted = [hidden, *(call.output for call in calls)]
        gradient, *at_outputs = torch.autograd.grad(logits, wanted, fisher_probes(logits.detach(), signs))
        for call, at_output in zip(calls, at_outputs, strict=True):
            assert on_head is not None
            on_head(call, at_output)
        return gradient

    def backward(
        self, on_block: Callable[[int, nn.Module, "BlockGradients"], None], stage: str = "backward"
    ) -> None:
        """Last block to first: give `on_block` each block with a way to run it with gradients."""
        for index in reversed(range(self.model.block_count)):
            block = self.load(index)
            on_block(index, block, BlockGradients(self, index, block))
            self.progress(stage, self.model.block_count - index, self.model.block_count)


@dataclass(frozen=True)
class BlockGradients:
    """Recomputes one block batch by batch and carries the gradient to the boundary before it."""

    stream: Stream
    index: int
    block: nn.Module

    def run(self, on_gradient: Callable[[int, WeightCall, Tensor], None]) -> None:
        """For every batch and product: (first sequence, call, gradient at the product's output)."""
        stream = self.stream
        block = stream.for_products(self.block)
        for start in stream.batches:
            calls: list[WeightCall] = []
            hidden = stream.hidden(self.index, start).float().requires_grad_(True)
            with stream.compute.autocast(), CaptureWeightCalls(block, calls.append):
                out = stream.model.run_block(block, hidden, stream.call(self.index, hidden.shape[0]))
            above = stream.states.get(f"g/{start}").to(out.device)
            outputs = [call.output for call in calls]
            gradients = torch.autograd.grad(out, [hidden, *outputs], above.to(out.dtype), allow_unused=True)
            stream.states.put(f"g/{start}", gradients[0])
            stream.states.drop(f"{self.index + 1}/{start}")
            with torch.no_grad():
                for call, gradient in zip(calls, gradients[1:], strict=True):
                    if gradient is not None:  # a product that the block's output does not read
                        on_gradient(start, call, gradient)
