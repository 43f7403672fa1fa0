"""Where a factor for each channel can move from one parameter into others without changing the model.

A norm's output is divided by factors and the columns of all that reads it are multiplied by them; so for the
rows of a value projection and the columns of what comes after attention, for an up projection and its down
projection. Which parameters belong together is not listed by architecture but tried out: a block runs on
noise with the parameters of one module multiplied by powers of two, which floating point carries exactly. A
product whose input changed by powers of two and nothing else reads that module; once its columns are divided
by the same, the block's output has to be the same bit for bit. Everything else (a gate before its
nonlinearity, queries before the softmax, a norm that feeds the residual stream) fails and has no fold. Random
factors and a tolerance were rejected: they cannot tell a channel that stays from one that moves a little.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from quantriage.formats.scaled_weights import Factors, ScaledWeights
from quantriage.model.capture import CaptureWeightCalls, WeightCall
from quantriage.model.causal import BlockCall, CausalModel
from quantriage.model.discover import randomized

_BITS = 4  # of a channel's number told by one run: factors from 2^-8 to 2^7
_MIDDLE = 1 << (_BITS - 1)
_NOISE = 8  # tokens


@dataclass(frozen=True, eq=False)
class Fold:
    """Parameters of one block between which factors may move, by their names in it.

    producers: divided along their output channels. offset: what their module adds to its vector. consumers:
    multiplied along their input channels. Both: true if stored [in, out].
    channels: [in], the producer's channel, of `width`, behind each input channel of the consumers.
    """

    block: int
    producers: dict[str, bool]
    offset: float
    consumers: dict[str, bool]
    channels: Tensor
    width: int

    @property
    def name(self) -> str:
        """Tells it from the model's other folds."""
        return f"{self.block}.{next(iter(self.producers))}"


def find_folds(model: CausalModel) -> tuple[Fold, ...]:
    """All of them. Blocks of equal parameter shapes are tried once. Memory: two blocks, their activations."""
    hidden, calls = model.start_from_noise(_NOISE)
    seen: dict[tuple[tuple[str, tuple[int, ...]], ...], tuple[Fold, ...]] = {}
    found: list[Fold] = []
    for index in range(model.block_count):
        template = model.block_template(index)
        key = tuple((name, tuple(p.shape)) for name, p in template.named_parameters())
        if key not in seen:
            seen[key] = _folds_of(_Trial.of(model, template, hidden, calls[index]))
        found.extend(replace(fold, block=index) for fold in seen[key])
    return _without_shared(model, found)


def _without_shared(model: CausalModel, folds: Sequence[Fold]) -> tuple[Fold, ...]:
    """Those whose tensors no other block reads: a tensor has one scaling."""
    pieces = [model.block_pieces(index) for index in range(model.block_count)]
    uses = Counter(piece.tensor for of_block in pieces for of_name in of_block.values() for piece in of_name)
    return tuple(
        fold
        for fold in folds
        if all(uses[p.tensor] == 1 for n in fold.producers | fold.consumers for p in pieces[fold.block][n])
    )


def scaled_weights(model: CausalModel, folds: Sequence[Fold], scales: Mapping[str, Tensor]) -> ScaledWeights:
    """The model's weights with `scales` [width] by a fold's name; a fold without any stays as it is."""
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    offsets: dict[str, float] = {}
    transposed: set[str] = set()
    for fold in folds:
        if fold.name not in scales:
            continue
        scale, pieces = scales[fold.name], model.block_pieces(fold.block)
        for name, turned in (fold.producers | fold.consumers).items():
            tensors = [piece.tensor for piece in pieces[name]]
            if turned:
                transposed.update(tensors)
            if name in fold.producers:
                rows |= dict.fromkeys(tensors, scale.reciprocal())
                offsets |= dict.fromkeys(tensors, fold.offset)
            else:
                columns |= dict.fromkeys(tensors, scale[fold.channels])
    factors = {
        name: Factors(rows.get(name), columns.get(name), offsets.get(name, 0.0))
        for name in rows.keys() | columns.keys()
    }
    return ScaledWeights(model.checkpoint.weights, factors, frozenset(transposed))


def _folds_of(trial: "_Trial") -> tuple[Fold, ...]:
    folds: list[Fold] = []
    taken: set[str] = set()  # an input has one factor
    for producers, count in trial.producers():
        vectors = all(trial.block.get_parameter(name).ndim == 1 for name in producers)
        for offset in (0.0, 1.0) if vectors else (0.0,):
            fold = trial.fold(producers, count, offset)
            if fold is not None and not taken & fold.consumers.keys():
                folds.append(fold)
                taken |= fold.consumers.keys()
                break
    return tuple(folds)


@dataclass
class _Trial:
    """One block with random weights, and what it did with them."""

    model: CausalModel
    block: nn.Module
    hidden: Tensor
    call: BlockCall
    products: list[WeightCall] = field(default_factory=list)
    output: Tensor = field(default_factory=lambda: torch.empty(0))

    @staticmethod
    def of(model: CausalModel, template: nn.Module, hidden: Tensor, call: BlockCall) -> "_Trial":
        """Run once, unchanged."""
        trial = _Trial(model, randomized(template, model.device), hidden, call)
        trial.products, trial.output = trial.run({})
        return trial

    @torch.no_grad()
    def run(self, changed: Mapping[str, Tensor]) -> tuple[list[WeightCall], Tensor]:
        """Products in order and the output, with some parameters replaced."""
        own = {name: self.block.get_parameter(name).data for name in changed}
        products: list[WeightCall] = []
        try:
            for name, value in changed.items():
                self.block.get_parameter(name).data = value
            with CaptureWeightCalls(self.block, products.append):
                output = self.model.run_block(self.block, self.hidden.clone(), self.call)
        finally:
            for name, value in own.items():
                self.block.get_parameter(name).data = value
        return products, output

    def producers(self) -> Iterator[tuple[dict[str, bool], int]]:
        """Parameters of each module whose output channels might be scaled, and how many those are."""
        turned = {product.parameter: product.transposed for product in self.products}
        for path, module in self.block.named_modules():
            own = {f"{path}.{n}" if path else n: p for n, p in module.named_parameters(recurse=False)}
            counts = {p.shape[-1 if turned.get(name) else 0] for name, p in own.items()}
            if len(counts) == 1 and all(p.ndim == 1 or (p.ndim == 2 and n in turned) for n, p in own.items()):
                yield {name: turned.get(name, False) for name in own}, counts.pop()

    def fold(self, producers: Mapping[str, bool], count: int, offset: float) -> Fold | None:
        """The fold behind these parameters of `count` channels; None if there is none."""
        channels = torch.zeros(1, dtype=torch.long)
        consumers: dict[str, bool] = {}
        for shift in range(0, max(1, (count - 1).bit_length()), _BITS):
            exponents = ((torch.arange(count) >> shift) & (2 * _MIDDLE - 1)) - _MIDDLE
            read = self._readers(producers, offset, exponents.to(self.hidden.device))
            if read is None:
                return None
            arrived, consumers = read
            channels = channels + ((arrived.cpu().long() + _MIDDLE) << shift)
        return (
            Fold(0, dict(producers), offset, consumers, channels, count) if channels.max() < count else None
        )

    def _readers(
        self, producers: Mapping[str, bool], offset: float, exponents: Tensor
    ) -> tuple[Tensor, dict[str, bool]] | None:
        """Exponents [in] that arrive where the module is read, and what reads it; None if it is no fold."""
        changed: dict[str, Tensor] = {}
        for name, turned in producers.items():
            value = self.block.get_parameter(name).data + offset
            changed[name] = _times(value, exponents, -1 if turned else 0) - offset
        arrived: Tensor | None = None
        consumers: dict[str, bool] = {}
        products, output = self.run(changed)
        while (found := self._next_reader(products, consumers)) is not None:
            reader, seen = found
            if seen is None or reader.parameter in changed or not (arrived is None or seen.equal(arrived)):
                return None
            arrived = seen
            consumers[reader.parameter] = reader.transposed
            value = self.block.get_parameter(reader.parameter).data
            changed[reader.parameter] = _times(value, -seen, 0 if reader.transposed else -1)
            products, output = self.run(changed)
        return (arrived, consumers) if arrived is not None and output.equal(self.output) else None

    def _next_reader(
        self, products: list[WeightCall], known: Collection[str]
    ) -> tuple[WeightCall, Tensor | None] | None:
        """The first product not known whose input changed, and by which exponents [in]."""
        for product, plain in zip(products, self.products, strict=False):
            if product.parameter in known:
                continue
            if product.parameter != plain.parameter or product.input.shape != plain.input.shape:
                return product, None
            if not product.input.equal(plain.input):
                return product, _exponents(product.input, plain.input)
        return None


def _exponents(changed: Tensor, plain: Tensor) -> Tensor | None:
    """Exponents [in] by which each channel of [..., in] was multiplied; None if that is not what happened."""
    rows, before = changed.reshape(-1, changed.shape[-1]), plain.reshape(-1, plain.shape[-1])
    largest = before.abs().argmax(0, keepdim=True)
    ratio = rows.gather(0, largest) / before.gather(0, largest)
    found = ratio.log2().round().nan_to_num(0.0, 0.0, 0.0).int()
    return found.squeeze(0) if torch.ldexp(before, found).equal(rows) else None


def _times(value: Tensor, exponents: Tensor, axis: int) -> Tensor:
    shape = [1] * value.ndim
    shape[axis] = -1
    return torch.ldexp(value, exponents.view(shape))
