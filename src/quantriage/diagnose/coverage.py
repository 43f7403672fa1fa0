"""Does a calibration set cover what production sends: input by input, prompt by prompt.

Calibration comes as two halves. Its own tokens are judged under the half that they are not in, production's
under both: a second moment fits the very tokens it was summed from, so judging calibration under itself would
make any other text look foreign. Two texts of one kind then give a ratio near 1 however few tokens there are.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.stats import false_discovery_control, mannwhitneyu
from torch import Tensor, nn

from quantriage.diagnose.coverage_additions import DIRECTIONS, leading_directions
from quantriage.diagnose.coverage_moments import (
    InputBatch,
    InputMoments,
    damped_factor,
    gather_moments,
    leverages,
    side_by_side,
    watch_inputs,
    whitened,
)
from quantriage.diagnose.coverage_samples import Floats, energy_distance, permutation_test
from quantriage.methods.objective import loss_error, share
from quantriage.model.site import Site, read_site
from quantriage.records.calibration import InputCoverage, TwoSample
from quantriage.stream.site_products import input_key
from quantriage.stream.stream import Stream

ALARM_P = 0.01  # adjusted for the number of inputs
ALARM_RATIO = 1.25  # a difference that is certain and small costs nothing
_QUANTILE = 0.99
_SMALL = 1e-12

Rounding = Callable[[Site], Tensor]


@dataclass(frozen=True)
class Texts:
    """The three streams: both halves of calibration, and production."""

    halves: tuple[Stream, Stream]
    production: Stream

    @property
    def all(self) -> tuple[Stream, ...]:
        """In this order."""
        return (*self.halves, self.production)


@dataclass
class Coverage:
    """What was found. relative: mean over inputs of log leverage over calibration's, [windows, length].

    grams: each production window in the directions that calibration lacks, [windows, inputs, k, k].
    """

    inputs: list[InputCoverage] = field(default_factory=list)
    relative: Tensor = field(default_factory=lambda: torch.zeros(0))
    grams: Tensor = field(default_factory=lambda: torch.zeros(0))
    activations: TwoSample | None = None


@dataclass
class _Tokens:
    """Leverages of one text at one input: of every token, and by window where tokens belong to one."""

    flat: list[Tensor] = field(default_factory=list)  # [n] each
    windows: dict[int, Tensor] = field(default_factory=dict)  # first window -> [windows, length]

    def add(self, batch: InputBatch, values: Tensor) -> None:
        self.flat.append(values)
        if batch.windows is not None:
            self.windows[batch.start] = values.view(batch.windows, -1)

    def by_window(self) -> Tensor | None:
        """[windows, length] in order; None for an expert."""
        return torch.cat([self.windows[s] for s in sorted(self.windows)]) if self.windows else None


def cover(texts: Texts, seed: int, rounding: Rounding | None = None) -> Coverage:
    """Compare production with calibration at every input of the model.

    rounding: the weights [out, in] that were calibrated; their error is then judged under both second
    moments. Memory: one block; for each of its distinct inputs three second moments and three factors.
    """
    found = Coverage()
    logs: list[Tensor] = []
    grams: list[Tensor] = []
    distances: list[Floats] = []

    def on_block(index: int, block: nn.Module) -> None:
        sites = [site for site in texts.production.sites if site.block == index]
        distances.append(_distances(texts, index))
        for record, log, gram in _block(texts, index, block, sites, rounding):
            found.inputs.append(record)
            if log is not None and gram is not None:
                logs.append(log)
                grams.append(gram)

    side_by_side(texts.all, on_block)
    found.inputs = adjusted(found.inputs)
    if logs:
        found.relative = torch.stack(logs).mean(dim=0)
        size = max(gram.shape[-1] for gram in grams)
        found.grams = torch.stack([_padded(gram, size) for gram in grams], dim=1)
    split = sum(half.tokens.sequences for half in texts.halves)
    mean = np.mean(distances, axis=0)
    found.activations = permutation_test(
        "activations", lambda order: energy_distance(mean, split, order), len(mean), seed
    )
    return found


def adjusted(inputs: Sequence[InputCoverage]) -> list[InputCoverage]:
    """p-values corrected for their number (Benjamini and Hochberg 1995), and alarms where they are small."""
    tested = [record.p_value for record in inputs if record.p_value is not None]
    corrected = iter(false_discovery_control(tested).tolist() if tested else [])
    result = []
    for record in inputs:
        p = next(corrected) if record.p_value is not None else None
        sure = p is not None and p < ALARM_P and record.ratio is not None and record.ratio > ALARM_RATIO
        unreached = record.production_tokens > 0 and record.calibration_tokens == 0
        fields = {name: getattr(record, name) for name in record.__struct_fields__}
        result.append(InputCoverage(**fields | {"p_value": p, "alarm": sure or unreached}))
    return result


Found = tuple[InputCoverage, Tensor | None, Tensor | None]


def _block(
    texts: Texts, index: int, block: nn.Module, sites: Sequence[Site], rounding: Rounding | None
) -> Iterable[Found]:
    """One record, log leverage and window matrices for each input of a block."""
    moments = [gather_moments(stream, index, block, sites) for stream in texts.all]
    comparisons = {}
    for key in dict.fromkeys(map(input_key, sites)):
        first, second, production = (found[key] for found in moments)
        comparisons[key] = _Comparison(first, second, production)
    for number, stream in enumerate(texts.all):

        def on_batch(batch: InputBatch, number: int = number) -> None:
            comparisons[batch.key].judge(number, batch)

        watch_inputs(stream, index, block, sites, on_batch)
    for key, compared in comparisons.items():
        own = [site for site in sites if input_key(site) == key]
        yield compared.result(block, own, rounding)


class _Comparison:
    """Calibration and production at one input."""

    def __init__(self, first: InputMoments, second: InputMoments, production: InputMoments) -> None:
        width = len(production.largest)
        self.whole = InputMoments(width, production.largest.device)
        self.whole.merge(first)
        self.whole.merge(second)
        self.tokens = self.whole.tokens, production.tokens
        self.largest = self.whole.largest, production.largest
        self.usable = min(first.tokens, second.tokens, production.tokens) > 0
        self.moments = self.whole.second_moment(), production.second_moment()
        self.judged = (_Tokens(), _Tokens(), _Tokens())
        self.grams: dict[int, Tensor] = {}
        if self.usable:
            self.factors = damped_factor(first.second_moment()), damped_factor(second.second_moment())
            self.factor = damped_factor(self.moments[0])
            self.directions = leading_directions(self.moments[1], self.factor, DIRECTIONS)

    def judge(self, number: int, batch: InputBatch) -> None:
        """Leverages of a batch of text `number`: 0 and 1 under the other half, 2 under both."""
        if not self.usable:
            return
        if number < 2:
            values = leverages(batch.inputs, self.factors[1 - number])
        else:
            values = (leverages(batch.inputs, self.factors[0]) + leverages(batch.inputs, self.factors[1])) / 2
            if batch.windows is not None:
                seen = (self.directions.T @ whitened(batch.inputs, self.factor)).T  # [n, k]
                parts = seen.view(batch.windows, -1, seen.shape[1])
                self.grams[batch.start] = parts.transpose(1, 2) @ parts / parts.shape[1]
        self.judged[number].add(batch, values)

    def result(self, block: nn.Module, sites: Sequence[Site], rounding: Rounding | None) -> Found:
        """The record with an unadjusted p-value, log leverage [windows, length] and grams [windows, k, k]."""
        errors = _errors(block, sites, rounding, self.moments) if self.usable and rounding else (None, None)
        own = torch.cat([*self.judged[0].flat, *self.judged[1].flat]) if self.usable else torch.zeros(0)
        theirs = torch.cat(self.judged[2].flat) if self.usable else torch.zeros(0)
        ratio = float(theirs.mean() / own.mean().clamp_min(_SMALL)) if self.usable else None
        outside = None
        if self.usable:
            outside = float((theirs > np.quantile(own.cpu().numpy(), _QUANTILE)).double().mean())
        windows = [judged.by_window() for judged in self.judged]
        p, log, gram = None, None, None
        if all(w is not None for w in windows):
            first, second, production = (w for w in windows if w is not None)
            calibrated = torch.cat([first, second]).mean(dim=1).cpu().numpy()
            p = float(
                mannwhitneyu(production.mean(dim=1).cpu().numpy(), calibrated, alternative="greater").pvalue
            )
            typical = own.clamp_min(_SMALL).log().mean()
            log = (production.clamp_min(_SMALL).log() - typical).cpu()
            gram = torch.cat([self.grams[s] for s in sorted(self.grams)]).cpu()
        channel, worst = _worst_channel(*self.largest)
        record = InputCoverage(
            sites=tuple(site.name for site in sites),
            block=sites[0].block,
            ratio=ratio,
            p_value=p,
            outside=outside,
            range_ratio=_over(float(self.largest[1].max()), float(self.largest[0].max())),
            worst_channel=channel,
            worst_channel_ratio=worst,
            calibration_tokens=self.tokens[0],
            production_tokens=self.tokens[1],
            calibrated_error=errors[0],
            production_error=errors[1],
        )
        return record, log, gram


def _errors(
    block: nn.Module, sites: Sequence[Site], rounding: Rounding, moments: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """Relative quadratic error of the rounding under both second moments, all sites of the input together."""
    weights = [read_site(block, site).float().contiguous() for site in sites]
    moved = [rounding(site).sub_(weight) for site, weight in zip(sites, weights, strict=True)]
    calibrated, produced = (
        share(
            sum(loss_error(change, moment, ()) for change in moved),
            sum(loss_error(weight, moment, ()) for weight in weights),
        )
        for moment in moments
    )
    return calibrated, produced


def _worst_channel(calibration: Tensor, production: Tensor) -> tuple[int | None, float | None]:
    """The channel whose range production exceeds most, among those of at least the median range."""
    matters = calibration >= calibration.median()
    ratios = torch.where(matters & (calibration > 0), production / calibration.clamp_min(_SMALL), 0.0)
    channel = int(ratios.argmax())
    value = float(ratios[channel])
    return (channel, value) if value > 0 and math.isfinite(value) else (None, None)


def _over(value: float, by: float) -> float | None:
    return value / by if by > 0 and math.isfinite(value) else None


def _distances(texts: Texts, index: int) -> Floats:
    """Distances between all windows' mean states [windows, width] at one boundary, their mean taken as 1.

    The first token is left out: in most models its state is a constant of great size.
    """
    means = [
        stream.hidden(index, start)[:, 1:].float().mean(dim=1).cpu()
        for stream in texts.all
        for start in stream.batches
    ]
    points = torch.cat(means).double().numpy()
    found: Floats = cdist(points, points)
    return found / max(float(found.mean()), _SMALL)


def _padded(gram: Tensor, size: int) -> Tensor:
    """[windows, k, k] with zeros up to `size`: a narrow input has fewer directions."""
    more = size - gram.shape[-1]
    return torch.nn.functional.pad(gram, (0, more, 0, more))


def prompt_ratios(relative: Tensor, prompt: Tensor) -> dict[int, tuple[float, int]]:
    """Prompt number -> (exp of its tokens' mean log leverage ratio, tokens); both arguments [windows, t]."""
    found = {}
    for number in torch.unique(prompt).tolist():
        if number >= 0:
            values = relative[prompt == number]
            found[int(number)] = (math.exp(float(values.mean())), len(values))
    return found
