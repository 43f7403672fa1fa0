"""Learn codes and scales of one block, so that what leaves it comes nearest to what left the reference's.

Error feedback settles each weight for itself. Here all weights of a block move together, on the states that
the quantized blocks below really give, towards the reference's output: layers make up for each other and for
what came before (AutoRound, arXiv:2309.05516; block reconstruction, arXiv:2102.05426). Two things differ.
Learning starts at the codes that error feedback chose, each latent a part of the way back to the original
weight, so that a code flips only where the gradient insists (docs/lab-log.md). And an output error is weighed
by the second moment of the loss's gradients there, not by its square.

Latents and the logarithms of scales (learned_codes.py) move by Adam under a falling rate, and with them the
block's vectors, norms and biases, which cost no bit. What is not better than before is not taken.

Memory: the block, its activations for one batch, and 20 bytes for each of its weights.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantriage.errors import UsageError
from quantriage.methods.learned_codes import LearnedCodes, Rounded
from quantriage.model.site import Site, part_of, read_site
from quantriage.stream.stream import Stream

States = Callable[[int], tuple[Tensor, Tensor]]
"""First sequence of a batch -> states [b, t, d]: quantized, before the block; the reference's, after it."""

_TINY = 1e-20  # Adam's: gradients of a mean over tokens are small beside the usual 1e-8
_JUDGED = 16  # batches at most that before and after are compared on
_FLOOR = 0.3  # of the mean diagonal, added to the metric, as row_coupling.py damps its own


@dataclass(frozen=True)
class RoundingSettings:
    """steps: batches that a block sees. code_rate: a step's largest change of a code; scale_rate: of a scale
    and of a vector's entry, as a share.
    """

    steps: int
    code_rate: float = 0.02
    scale_rate: float = 2e-3

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"{self.steps} steps of learned rounding: expected 1 or more")


@dataclass(frozen=True)
class LearnedBlock:
    """New weights by site name, new vectors by parameter name (none: as they were), and the metric's mean
    output error before and after, on the same tokens.
    """

    quantized: dict[str, Rounded]
    vectors: dict[str, Tensor]
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
    rounded: Sequence[tuple[Site, Rounded]],
    states: States,
    metric: Tensor,
    settings: RoundingSettings,
    vectors: Sequence[str],
    stored: torch.dtype,
    seed: int,
) -> LearnedBlock:
    """Block `index` learned on the stream's batches; `rounded` are all of its quantized sites.

    metric: of errors at the block's output, [d, d] (output_metric). vectors: parameters of the block that
    move too; stored: what they are rounded to in the end.
    """
    learner = _Learner(stream, index, rounded, states, metric.to(stream.compute.device), vectors)
    judged = stream.batches[:: -(-len(stream.batches) // _JUDGED)]
    learner.write(quantized.dequantize() for _, quantized in rounded)
    before = learner.error(judged)
    generator = torch.Generator().manual_seed(seed + index)
    order: list[int] = []
    weights = learner.weights
    logs = [weight.log for weight in weights] + [vector.log for vector in learner.vectors]
    groups = [
        {"params": [weight.latent for weight in weights], "lr": settings.code_rate},
        {"params": logs, "lr": settings.scale_rate},
    ]
    adam = torch.optim.Adam(groups, eps=_TINY)
    falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1.0 - step / settings.steps)
    for _ in range(settings.steps):
        order = order or torch.randperm(len(stream.batches), generator=generator).tolist()
        learner.differentiate(stream.batches[order.pop()])
        adam.step()
        falling.step()
        for weight in weights:
            weight.clamp()
    found = [weight.quantized() for weight in weights]
    learned = [vector.value().to(stored) for vector in learner.vectors]
    learner.write(quantized.dequantize() for quantized in found)
    learner.write_vectors(learned)
    after = learner.error(judged)
    if not after < before:
        return LearnedBlock({site.name: quantized for site, quantized in rounded}, {}, before, before)
    names = [site.name for site, _ in rounded]
    by_name = {name: vector.cpu() for name, vector in zip(vectors, learned, strict=True)}
    return LearnedBlock(dict(zip(names, found, strict=True)), by_name, before, after)


class _LearnedVector:
    """A norm or a bias: each entry moves by a factor. parameter: in the block that runs."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self._original = parameter.detach().clone()
        self.log = torch.zeros_like(self._original)

    def value(self) -> Tensor:
        """As it now is."""
        return self._original * self.log.exp()

    def differentiate(self, gradient: Tensor | None) -> None:
        """Set the logarithms' gradient from that at the vector; None: nothing read it."""
        self.log.grad = None if gradient is None else gradient * self.value()


class _Learner:
    """A block whose quantized weights move."""

    def __init__(
        self,
        stream: Stream,
        index: int,
        rounded: Sequence[tuple[Site, Rounded]],
        states: States,
        metric: Tensor,
        vectors: Sequence[str],
    ) -> None:
        self._stream, self._index, self._states, self._metric = stream, index, states, metric
        whole = stream.load(index)
        self._sites = [site for site, _ in rounded]
        self.weights = [LearnedCodes(read_site(whole, site), quantized) for site, quantized in rounded]
        self._module: nn.Module = stream.for_products(whole)
        self._module.requires_grad_(False)
        names = dict.fromkeys(site.parameter for site in self._sites)
        self._parameters = {name: self._module.get_parameter(name) for name in names}
        self.vectors = [_LearnedVector(self._module.get_parameter(name)) for name in vectors]

    @torch.no_grad()
    def write(self, values: Iterable[Tensor]) -> None:
        """Put these weights [out, in] into the block."""
        for site, value in zip(self._sites, values, strict=True):
            read_site(self._module, site).copy_(value)

    @torch.no_grad()
    def write_vectors(self, values: Iterable[Tensor]) -> None:
        """Put these vectors into the block."""
        for vector, value in zip(self.vectors, values, strict=True):
            vector.parameter.copy_(value)

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

    def differentiate(self, start: int) -> None:
        """Gradients of the batch that begins at sequence `start`."""
        stream = self._stream
        hidden, wanted = self._read(start)
        self.write(weight.value() for weight in self.weights)
        self.write_vectors(vector.value() for vector in self.vectors)
        matrices = len(self._parameters)
        parameters = [*self._parameters.values(), *(vector.parameter for vector in self.vectors)]
        for parameter in parameters:
            parameter.requires_grad_(True)
        with stream.compute.autocast():
            out = stream.model.run_block(self._module, hidden, stream.call(self._index, hidden.shape[0]))
        error = out.detach().float() - wanted
        above = (error @ self._metric).div_(error[..., 0].numel())
        found = torch.autograd.grad(out, parameters, above.to(out.dtype), allow_unused=True)
        gradients = dict(zip(self._parameters, found[:matrices], strict=True))
        for parameter in parameters:
            parameter.requires_grad_(False)
        for site, weight in zip(self._sites, self.weights, strict=True):
            gradient = gradients[site.parameter]
            weight.differentiate(None if gradient is None else part_of(gradient, site))
        for vector, gradient in zip(self.vectors, found[matrices:], strict=True):
            vector.differentiate(gradient)

    def _read(self, start: int) -> tuple[Tensor, Tensor]:
        device = self._stream.compute.device
        hidden, wanted = self._states(start)
        return hidden.to(device), wanted.to(device)
