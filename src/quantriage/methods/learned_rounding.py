"""Learn codes and scales of one block, so that what leaves it comes nearest to what left the reference's.

Error feedback settles each weight for itself. Here all weights of a block move together, on the states that
the quantized blocks below really give, towards the reference's output: layers make up for each other and for
what came before (AutoRound, arXiv:2309.05516; block reconstruction, arXiv:2102.05426). Two things differ.
Learning starts at the codes that error feedback chose, each latent a part of the way back to the original
weight, so that a code flips only where the gradient insists (docs/lab-log.md). And an output error is weighed
by the second moment of the loss's gradients there, not by its square.

Codes pass gradients straight through; latents and the logarithms of scales move by Adam under a falling rate.
Zero points stay, so size, layout and kernels do. What is not better than before is not taken.

Memory: the block, its activations for one batch, and 20 bytes for each of its weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from quantriage.errors import UsageError
from quantriage.model.site import Site, part_of, read_site
from quantriage.numerics.qparams import SCALE_DTYPES, float_zero_point
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.stream.stream import Stream

States = Callable[[int], tuple[Tensor, Tensor]]
"""First sequence of a batch -> states [b, t, d]: quantized, before the block; the reference's, after it."""

_TINY = 1e-20  # Adam's: gradients of a mean over tokens are small beside the usual 1e-8
_BACK, _MOST_BACK = 0.5, 0.3  # of the way to the original weight that a latent starts; code steps
_EDGE = 0.49  # code steps beyond the first and last code
_JUDGED = 16  # batches at most that before and after are compared on
_FLOOR = 0.3  # of the mean diagonal, added to the metric, as row_coupling.py damps its own


@dataclass(frozen=True)
class RoundingSettings:
    """steps: batches that a block sees. code_rate, scale_rate: a step's largest change; of codes, a share."""

    steps: int
    code_rate: float = 0.02
    scale_rate: float = 2e-3

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"{self.steps} steps of learned rounding: expected 1 or more")


@dataclass(frozen=True)
class LearnedBlock:
    """New weights by site name, and the metric's mean output error before and after, on the same tokens."""

    quantized: dict[str, QuantizedTensor]
    before: float
    after: float


def output_metric(moment: Tensor) -> Tensor:
    """What an output error costs, [d, d]: the gradients' second moment at mean diagonal 1, and a floor."""
    mean = moment.diagonal().mean()
    unit = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return moment / mean + _FLOOR * unit if mean > 0 else unit


def learn_block(
    stream: Stream,
    index: int,
    rounded: Sequence[tuple[Site, QuantizedTensor]],
    states: States,
    metric: Tensor,
    settings: RoundingSettings,
    seed: int = 0,
) -> LearnedBlock:
    """Block `index` learned on the stream's batches; `rounded` are all of its quantized sites.

    metric: of errors at the block's output, [d, d] (output_metric).
    """
    learner = _Learner(stream, index, rounded, states, metric.to(stream.compute.device))
    judged = stream.batches[:: -(-len(stream.batches) // _JUDGED)]
    learner.write([quantized for _, quantized in rounded])
    before = learner.error(judged)
    generator = torch.Generator().manual_seed(seed + index)
    order: list[int] = []
    adam = torch.optim.Adam(learner.groups(settings), eps=_TINY)
    falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1.0 - step / settings.steps)
    for _ in range(settings.steps):
        order = order or torch.randperm(len(stream.batches), generator=generator).tolist()
        learner.differentiate(stream.batches[order.pop()])
        adam.step()
        falling.step()
        learner.clamp()
    found = [weight.quantized() for weight in learner.weights]
    learner.write(found)
    after = learner.error(judged)
    if not after < before:
        found, after = [quantized for _, quantized in rounded], before
    names = [site.name for site, _ in rounded]
    return LearnedBlock(dict(zip(names, found, strict=True)), before, after)


class _Weight:
    """One site in training: latents in code steps [out, groups, width], scales' logarithms [out, groups]."""

    def __init__(self, site: Site, original: Tensor, rounded: QuantizedTensor) -> None:
        self.site, self.rounded = site, rounded
        device, grid = original.device, rounded.scheme.grid
        self.start = rounded.scale.to(device, torch.float32)
        self.zero = float_zero_point(self.start, rounded.zero_point, grid).unsqueeze(-1)
        codes = rounded.codes.to(device, torch.float32).view(*self.start.shape, -1)
        wanted = original.float().reshape(codes.shape) / self.start.unsqueeze(-1) + self.zero
        self.latent = codes + (wanted - codes).mul_(_BACK).clamp_(-_MOST_BACK, _MOST_BACK)
        self.log = torch.zeros_like(self.start)

    def codes(self) -> Tensor:
        """Codes from zero, float32 [out, groups, width]."""
        return self.latent.round().clamp_(0, self.rounded.scheme.grid.levels - 1)

    def scale(self) -> Tensor:
        """Scales, float32 [out, groups]."""
        return self.start * self.log.exp()

    def value(self) -> Tensor:
        """The weight as it now is, float32 [out, groups, width]."""
        return (self.codes() - self.zero).mul_(self.scale().unsqueeze(-1))

    def differentiate(self, gradient: Tensor | None) -> None:
        """Gradients of what moves from that at the weight, [out, in]; None: no token reached it."""
        if gradient is None:
            self.latent.grad = self.log.grad = None
            return
        grouped = gradient.float().reshape(self.latent.shape)
        self.log.grad = (grouped * self.value()).sum(-1)
        self.latent.grad = grouped * self.scale().unsqueeze(-1)

    def clamp(self) -> None:
        """Keep latents at the codes that there are."""
        self.latent.clamp_(-_EDGE, self.rounded.scheme.grid.levels - 1 + _EDGE)

    def quantized(self) -> QuantizedTensor:
        """As it will be stored."""
        codes = self.codes().to(torch.uint8).view(self.rounded.shape).cpu()
        dtype = SCALE_DTYPES[self.rounded.scheme.scale_dtype]
        scale = self.scale().to(dtype).view(self.rounded.scale.shape).cpu()
        return replace(self.rounded, codes=codes, scale=scale)


class _Learner:
    """A block whose quantized weights move."""

    def __init__(
        self,
        stream: Stream,
        index: int,
        rounded: Sequence[tuple[Site, QuantizedTensor]],
        states: States,
        metric: Tensor,
    ) -> None:
        self._stream, self._index, self._states, self._metric = stream, index, states, metric
        whole = stream.load(index)
        self.weights = [_Weight(site, read_site(whole, site), quantized) for site, quantized in rounded]
        self._module: nn.Module = stream.for_products(whole)
        self._module.requires_grad_(False)
        names = dict.fromkeys(site.parameter for site, _ in rounded)
        self._parameters = {name: self._module.get_parameter(name) for name in names}

    @torch.no_grad()
    def write(self, values: Sequence[QuantizedTensor]) -> None:
        """Put these weights into the block."""
        for weight, value in zip(self.weights, values, strict=True):
            read_site(self._module, weight.site).copy_(value.dequantize())

    @torch.no_grad()
    def error(self, batches: Sequence[int]) -> float:
        """Mean over tokens of e M e^T, e the output's error."""
        total, tokens = 0.0, 0
        for start in batches:
            hidden, wanted = self._read(start)
            error = self._stream.run(self._index, self._module, hidden) - wanted
            total += float(((error @ self._metric) * error).sum())
            tokens += error[..., 0].numel()
        return total / tokens

    def groups(self, settings: RoundingSettings) -> list[dict[str, Any]]:
        """What moves, for an optimizer of torch."""
        return [
            {"params": [weight.latent for weight in self.weights], "lr": settings.code_rate},
            {"params": [weight.log for weight in self.weights], "lr": settings.scale_rate},
        ]

    def clamp(self) -> None:
        """Keep latents at the codes that there are."""
        for weight in self.weights:
            weight.clamp()

    def differentiate(self, start: int) -> None:
        """Gradients of the batch that begins at sequence `start`."""
        stream = self._stream
        hidden, wanted = self._read(start)
        with torch.no_grad():
            for weight in self.weights:
                read_site(self._module, weight.site).copy_(weight.value().view(weight.rounded.shape))
        parameters = list(self._parameters.values())
        for parameter in parameters:
            parameter.requires_grad_(True)
        with stream.compute.autocast():
            out = stream.model.run_block(self._module, hidden, stream.call(self._index, hidden.shape[0]))
        error = out.detach().float() - wanted
        above = (error @ self._metric).div_(error[..., 0].numel())
        found = torch.autograd.grad(out, parameters, above.to(out.dtype), allow_unused=True)
        gradients = dict(zip(self._parameters, found, strict=True))
        for parameter in parameters:
            parameter.requires_grad_(False)
        with torch.no_grad():
            for weight in self.weights:
                gradient = gradients[weight.site.parameter]
                weight.differentiate(None if gradient is None else part_of(gradient, weight.site))

    def _read(self, start: int) -> tuple[Tensor, Tensor]:
        device = self._stream.compute.device
        hidden, wanted = self._states(start)
        return hidden.to(device), wanted.to(device)
