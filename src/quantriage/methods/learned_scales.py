"""Learn scales end to end: codes stay, scales and norms move until the logits are nearest to the reference's.

After rounding, each scale is what the output error of its own layer chose. Here all of them together follow
the gradient of KL(reference || quantized), so that layers make up for each other and for what whole codes
left over: the second phase of EfficientQAT (arXiv:2407.11062). Norms and biases follow too. Codes and zero
points stay, so the file keeps its size, layout and kernels.

A step is one batch: forward through the quantized blocks with the states of every boundary kept, the gradient
at the logits, and back, one block recomputed at a time. The logarithm of each one's factor moves by Adam
under a falling rate. What is given out is an average of the steps: all scales moving together meet a few
stiff directions that swing about at any useful rate (docs/lab-log.md). Whoever calls judges the scales on
other text and keeps the best, so learning cannot make them worse there.

Memory: one block, its codes and its weight gradients, the state budget, 20 bytes for each scale. Half of the
state budget keeps quantized blocks between steps; what does not fit is read and dequantized anew.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from quantriage.errors import UsageError
from quantriage.model.site import Site, part_of, read_site
from quantriage.numerics.qparams import float_zero_point
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.stream.stream import Stream

ReadQuantized = Callable[[Site], QuantizedTensor]


@dataclass(frozen=True)
class LearnSettings:
    """steps: batches seen. learning_rate: the largest change of a scale in one step, about, as a share."""

    steps: int
    learning_rate: float = 5e-4
    warmup: int = 5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"{self.steps} steps of learning: expected 1 or more")

    def rate(self, step: int) -> float:
        """Learning rate of step 1, 2, ...: a short rise, then half a cosine down to 0."""
        falling = 0.5 * (1.0 + math.cos(math.pi * (step - 1) / self.steps))
        return self.learning_rate * min(1.0, step / self.warmup) * falling


class ScaleLearner:
    """Scales of `sites` under training. The stream's tokens are the training text, in batches shuffled once.

    read: a site's weight as rounded. vectors: tensors of norms and biases that move too, to be `stored` so.
    After `prepare`, `step` any number of times; `quantized` and `vector` give results.
    """

    _MOMENTUM, _SQUARES, _AVERAGE, _TINY = 0.9, 0.99, 0.9, 1e-12

    def __init__(
        self,
        stream: Stream,
        sites: tuple[Site, ...],
        read: ReadQuantized,
        seed: int = 0,
        vectors: Collection[str] = (),
        stored: torch.dtype = torch.float16,
    ) -> None:
        self._stream, self.sites, self._read = stream, sites, read
        self.vectors, self._stored = vectors, stored
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(stream.batches), generator=generator)
        self._order = [stream.batches[place] for place in order.tolist()]
        # Of each entry: the logarithm of its factor, Adam's moments of the gradient, the logarithms' average.
        shapes = {site.name: tuple(read(site).scale.shape) for site in sites}
        shapes |= {name: stream.model.checkpoint.weights.shape(name) for name in vectors}
        self.state = {name: torch.zeros(4, *shape) for name, shape in shapes.items()}
        self._kept: dict[int, _Block] = {}
        self._room = stream.states.budget_bytes // 2

    def prepare(self) -> None:
        """Compute the reference's final states of every batch: one forward pass."""
        stream = self._stream
        stream.forward(stage="learn scales: reference")
        for start, hidden in stream.final_states():
            stream.states.put(f"reference/{start}", hidden)
        stream.states.drop_prefix(f"{stream.model.block_count}/")
        stream.embed()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from (a copy of) what `state` was once."""
        self.state = {name: value.clone() for name, value in state.items()}
        self._kept_anew()

    def quantized(self, site: Site) -> QuantizedTensor:
        """The weight with its averaged scales, in the dtype in which they are stored."""
        rounded = self._read(site)
        scale = rounded.scale.float() * self.state[site.name][3].exp()
        return replace(rounded, scale=scale.to(rounded.scale.dtype))

    def vector(self, name: str) -> Tensor:
        """A norm or bias with its averaged factors, in the dtype in which it is stored."""
        original = self._stream.model.checkpoint.weights.get(name).float()
        return (original * self.state[name][3].exp()).to(self._stored)

    def step(self, number: int, rate: float) -> float:
        """Step 1, 2, ...: returns the KL of its batch before the step, nats per token."""
        stream = self._stream
        start = self._order[(number - 1) % len(self._order)]
        stream.states.put("learn/0", stream.hidden(0, start))
        for index in range(stream.model.block_count):
            below = stream.states.get(f"learn/{index}").to(stream.compute.device)
            stream.states.put(f"learn/{index + 1}", stream.run(index, self._block(index).module, below))
        kl, above = self._at_head(start)
        gradients: dict[str, Tensor] = {}
        for index in reversed(range(stream.model.block_count)):
            above = self._back(index, above, gradients)
        self._move(gradients, number, rate)
        return kl

    # -- one step

    @torch.no_grad()
    def _at_head(self, start: int) -> tuple[float, Tensor]:
        """Mean KL of a batch, and its gradient [b, t, d] at the last boundary."""
        stream = self._stream
        wanted = stream.states.get(f"reference/{start}").to(stream.compute.device)
        hidden = stream.states.get(f"learn/{stream.model.block_count}").to(stream.compute.device)
        count = hidden[..., 0].numel()
        total, parts = 0.0, []
        with stream.model.head(stream.compute.dtype), stream.compute.autocast():
            for first in range(0, count, stream.head_rows):
                part = slice(first, first + stream.head_rows)
                rows, reference = hidden.view(count, -1)[part], wanted.view(count, -1)[part]
                target = torch.log_softmax(stream.model.logits(reference), dim=-1, dtype=torch.float32)
                with torch.enable_grad():
                    rows = rows.detach().requires_grad_(True)
                    logits = stream.model.logits(rows)
                found = torch.log_softmax(logits.detach(), dim=-1, dtype=torch.float32)
                shares = target.exp()
                total += float((shares * (target - found)).sum())
                difference = found.exp_().sub_(shares).div_(count)
                parts.append(torch.autograd.grad(logits, rows, difference.to(logits.dtype))[0])
        return total / count, torch.cat(parts).view_as(hidden)

    def _back(self, index: int, above: Tensor, gradients: dict[str, Tensor]) -> Tensor:
        """Gradient at the boundary below block `index`; adds those of the block's scales."""
        stream, block = self._stream, self._block(index)
        hidden = stream.states.get(f"learn/{index}").to(stream.compute.device).requires_grad_(True)
        with stream.compute.autocast():
            out = stream.model.run_block(block.module, hidden, stream.call(index, hidden.shape[0]))
        below, *of_weights = torch.autograd.grad(
            out, [hidden, *block.parameters.values()], above.to(out.dtype), allow_unused=True
        )
        by_name = dict(zip(block.parameters, of_weights, strict=True))
        for site, rounded in block.rounded:
            gradient = by_name[site.parameter]
            if gradient is not None:  # an expert that no token reached
                levels = _levels(rounded)
                of_scale = (part_of(gradient, site).float().reshape(levels.shape) * levels).sum(dim=-1)
                gradients[site.name] = of_scale * self._factors(site, rounded)
        for name, (parameter, _) in block.vectors.items():
            gradient = by_name[parameter]
            if gradient is not None:
                gradients[name] = gradient.float() * block.parameters[parameter].detach()
        return below.float()

    def _move(self, gradients: dict[str, Tensor], number: int, rate: float) -> None:
        for name, gradient in gradients.items():
            logs, mean, squares, average = self.state[name]
            mean.lerp_(gradient.cpu(), 1.0 - self._MOMENTUM)
            squares.lerp_(gradient.cpu().square(), 1.0 - self._SQUARES)
            spread = (squares / (1.0 - self._SQUARES**number)).sqrt_().add_(self._TINY)
            logs.sub_(mean / spread, alpha=rate / (1.0 - self._MOMENTUM**number))
            average.lerp_(logs, 1.0 - self._AVERAGE)
        self._kept_anew()

    # -- blocks

    def _kept_anew(self) -> None:
        for block in self._kept.values():
            self._write(block)

    def _block(self, index: int) -> "_Block":
        if index in self._kept:
            return self._kept[index]
        rounded = [(site, self._read(site)) for site in self.sites if site.block == index]
        module = self._stream.for_products(self._stream.load(index))
        names = dict.fromkeys(site.parameter for site, _ in rounded)
        vectors = {
            tensor: (name, module.get_parameter(name).detach().clone())
            for name, tensor in self._stream.model.block_vectors(index).items()
            if tensor in self.vectors
        }
        names |= dict.fromkeys(name for name, _ in vectors.values())
        parameters = {name: module.get_parameter(name) for name in names}
        module.requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        block = _Block(module, rounded, parameters, vectors)
        self._write(block)
        if block.nbytes <= self._room:
            self._room -= block.nbytes
            self._kept[index] = block
        return block

    @torch.no_grad()
    def _write(self, block: "_Block") -> None:
        for site, rounded in block.rounded:
            weight = _levels(rounded) * self._factors(site, rounded).unsqueeze(-1)
            read_site(block.module, site).copy_(weight.view(rounded.shape))
        for name, (parameter, original) in block.vectors.items():
            factors = self.state[name][0].exp().to(original.device)
            block.parameters[parameter].copy_(original * factors)

    def _factors(self, site: Site, rounded: QuantizedTensor) -> Tensor:
        """Present scales, float32, in the shape of the stored ones."""
        return rounded.scale.float() * self.state[site.name][0].exp()


@dataclass(frozen=True)
class _Block:
    module: nn.Module
    rounded: list[tuple[Site, QuantizedTensor]]
    parameters: dict[str, nn.Parameter]
    vectors: dict[str, tuple[str, Tensor]]  # by tensor: the parameter, and what it was

    @property
    def nbytes(self) -> int:
        weights = sum(p.numel() * p.element_size() for p in self.module.parameters())
        return weights + sum(rounded.codes.numel() for _, rounded in self.rounded)


def _levels(rounded: QuantizedTensor) -> Tensor:
    """codes - zero point, float32, [out, groups, width of a group]; [1, 1, n] per tensor."""
    zero = float_zero_point(rounded.scale, rounded.zero_point, rounded.scheme.grid)
    return rounded.codes.float().view(*rounded.scale.shape, -1) - zero.unsqueeze(-1)
