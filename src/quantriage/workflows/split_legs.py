"""The legs of a three-way split: the candidate's weights in our mathematics, in an engine, on other prompts.

All legs run the same tokens, so that differences are taken token by token. The weights are run under the
*reference's* settings: a wrong rotary base in the candidate's config is no fault of its weights, and shows as
a leg of its own, the file under its own settings, which the engines are then compared with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from quantriage.data.token_set import TokenSet
from quantriage.diagnose.plain_rounding import standing_scheme
from quantriage.diagnose.split import EXPLAINED_FACTOR, LEAST_DIFFERENCE, RUNTIME_FACTOR
from quantriage.errors import EngineError
from quantriage.evaluate.compare_states import compare_states
from quantriage.evaluate.engines.difference import difference
from quantriage.evaluate.engines.protocol import AUTO, DTYPES, Engine, EngineAnswer, EngineQuestion
from quantriage.evaluate.intervals import mean_interval
from quantriage.evaluate.reference_states import final_states
from quantriage.evaluate.token_scores import TokenScores, token_kl
from quantriage.formats.checkpoint import Checkpoint
from quantriage.model.causal import CausalModel
from quantriage.numerics.schemes import Scheme
from quantriage.records.diagnosis import GuardFinding, SplitLeg
from quantriage.records.types import Interval
from quantriage.stream.compute import Compute, exact
from quantriage.stream.progress import Progress, silent
from quantriage.stream.states import StateStore
from quantriage.workflows.meter import Meter
from quantriage.workflows.opened import OpenedModel

OURS = "quantriage float32"
_ROWS = 1 << 24  # logits of the reference made at once beside an engine's


@dataclass(frozen=True)
class EngineSettings:
    """How engines are run: a dtype of DTYPES, and settings by the engine's own names."""

    dtype: str = AUTO
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitBench:
    """What every leg is measured with. Both models must have one shape (`refuse_other_shape`)."""

    reference: OpenedModel
    candidate: OpenedModel
    cache: Path
    spill: Path
    state_bytes: int
    progress: Progress = silent

    def meter(self, tokens: TokenSet, stage: str) -> Meter:
        """The reference on these tokens, in float32."""
        return Meter(
            self.reference.model,
            self.reference.map,
            tokens,
            exact(str(self.reference.model.device)),
            self.cache,
            self.spill,
            self.state_bytes,
            self.progress,
            stage,
        )

    def weights_alone(self) -> CausalModel:
        """The candidate's weights under the reference's settings."""
        checkpoint = replace(self.candidate.checkpoint, config=self.reference.checkpoint.config)
        return CausalModel(checkpoint, str(self.reference.model.device))

    @cached_property
    def schemes(self) -> dict[str, Scheme]:
        """The scheme that stands for how each quantized site is stored. Reads one weight at a time."""
        found: dict[str, Scheme] = {}
        for site in self.reference.map.sites:
            stored = self.candidate.checkpoint.weights.stored(site.name)
            scheme = None if stored is None else standing_scheme(stored, site.shape[1])
            if scheme is not None:
                found[site.name] = scheme
        return found


def weights_leg(bench: SplitBench, tokens: TokenSet, label: str) -> tuple[SplitLeg, TokenScores]:
    """The candidate's weights in reference mathematics, with what plain rounding loses beside it."""
    return _scored_leg(bench, tokens, "weights", label)


def data_leg(bench: SplitBench, tokens: TokenSet, label: str) -> SplitLeg:
    """The same on other prompts."""
    return _scored_leg(bench, tokens, "data", label)[0]


def _scored_leg(bench: SplitBench, tokens: TokenSet, part: str, label: str) -> tuple[SplitLeg, TokenScores]:
    meter = bench.meter(tokens, f"{label}: candidate")
    scores = meter.model_scores(bench.weights_alone(), bench.reference.map)
    explained, excess = 0.0, None
    if bench.schemes:
        plain = replace(meter, stage=f"{label}: plain rounding").nearest(bench.schemes)
        explained = float(plain.kl.double().mean())
        excess = _kl_interval(scores.kl.double() - EXPLAINED_FACTOR * plain.kl.double())
    change = difference(-scores.reference_nll, -scores.nll)
    leg = SplitLeg(
        part="data" if part == "data" else "weights",
        label=label,
        engine=OURS,
        kl=_kl_interval(scores.kl),
        nll_shift=change.nll_shift,
        largest_difference=change.largest,
        noise_floor=None,
        tokens=change.tokens,
        mean_difference=change.mean_absolute,
        explained_kl=explained,
        excess_kl=excess,
    )
    return leg, scores


def settings_leg(bench: SplitBench, tokens: TokenSet, alone: TokenScores) -> tuple[SplitLeg, TokenScores]:
    """The candidate under its own settings, in our mathematics. alone: its weights under the reference's."""
    scores = bench.meter(tokens, "own settings").model_scores(bench.candidate.model, bench.candidate.map)
    change = difference(-alone.nll, -scores.nll)
    leg = SplitLeg(
        part="runtime",
        label="the candidate under its own settings",
        engine=OURS,
        kl=_kl_interval(scores.kl),
        nll_shift=change.nll_shift,
        largest_difference=change.largest,
        noise_floor=0.0,
        tokens=change.tokens,
        mean_difference=change.mean_absolute,
    )
    return leg, scores


def engine_leg(
    bench: SplitBench, engine: Engine, tokens: TokenSet, own: TokenScores, settings: EngineSettings
) -> tuple[SplitLeg, tuple[GuardFinding, ...]]:
    """The same file through an engine. own: our scores of it under its own settings. Raises EngineError.

    Also what the engine's answer itself shows: figures that are no numbers, a fault on the reference too.
    """
    question = _question(bench.candidate.checkpoint, tokens, settings)
    kl: dict[int, float] = {}
    with bench.reference.model.head():
        states = bench.meter(tokens, "reference").reference()

        def visit(number: int, logits: Tensor) -> None:
            kl[number] = _sequence_kl(bench.reference.model, states[number], logits)

        bench.progress(f"engine {engine.name}", 0, 1)
        answer = engine.ask(question, visit)
        bench.progress(f"engine {engine.name}", 1, 1)
    change = difference(-own.nll, answer.logprobs)
    floor, findings = _floor(bench, engine, answer, tokens, own)
    whole = len(kl) == tokens.sequences and not answer.broken
    leg = SplitLeg(
        part="runtime",
        label=f"the same file in {engine.name}",
        engine=f"{answer.engine}, {answer.dtype}",
        kl=mean_interval([kl[i] for i in range(tokens.sequences)]) if whole else None,
        nll_shift=change.nll_shift,
        largest_difference=change.largest,
        noise_floor=floor,
        tokens=change.tokens,
        mean_difference=change.mean_absolute,
    )
    return leg, (*findings, *_broken(engine, answer))


def _question(checkpoint: Checkpoint, tokens: TokenSet, settings: EngineSettings) -> EngineQuestion:
    model = checkpoint.path if checkpoint.kind == "gguf" else checkpoint.folder
    return EngineQuestion(model, checkpoint.kind, tokens.tokens, settings.dtype, settings.options)


def _floor(
    bench: SplitBench, engine: Engine, answer: EngineAnswer, tokens: TokenSet, own: TokenScores
) -> tuple[float, tuple[GuardFinding, ...]]:
    """How far a healthy engine of this dtype departs from us: on the reference, with no settings.

    If it cannot run the reference, or departs on it by more than its dtype explains, the floor is what our
    own mathematics changes on the candidate in that dtype.
    """
    reference = bench.reference.checkpoint
    dtype = answer.dtype if answer.dtype in DTYPES else AUTO
    if engine.refuses(reference.kind) is not None:
        return _own_floor(bench, tokens, own, answer.dtype), ()
    try:
        theirs = engine.ask(_question(reference, tokens, EngineSettings(dtype)))
    except EngineError:
        return _own_floor(bench, tokens, own, answer.dtype), ()
    ours = bench.meter(tokens, "reference").weights({})
    floor = difference(-ours.nll, theirs.logprobs).mean_absolute.value
    if floor <= LEAST_DIFFERENCE:
        return floor, ()
    expected = _own_floor(bench, tokens, own, answer.dtype)
    allowed = max(RUNTIME_FACTOR * expected, LEAST_DIFFERENCE)
    if floor <= allowed:
        return floor, ()
    evidence = (
        f"on the unquantized reference too it changes log-probabilities of the text by {floor:.3g} nats a "
        f"token in the mean; its dtype explains {expected:.3g}"
    )
    return expected, (GuardFinding(check=f"engine {engine.name}", holds=False, evidence=evidence),)


def _own_floor(bench: SplitBench, tokens: TokenSet, own: TokenScores, dtype: str) -> float:
    """Mean |change of log p| of the candidate in our mathematics when products run in bfloat16.

    It also bounds float16, which is finer, and eight-bit activations in groups, which are about as coarse.
    """
    if dtype == "float32":
        return 0.0
    opened = bench.candidate
    compute = Compute(opened.model.device, torch.bfloat16, "as the engine")
    store = StateStore(bench.spill, bench.state_bytes)
    states = final_states(
        opened.model, opened.map.sites, tokens, compute, store, progress=bench.progress, stage="noise floor"
    )
    float32 = exact(str(opened.model.device))
    rough = compare_states(opened.model, states, opened.model, states, tokens, float32)
    return difference(-own.nll, -rough.nll).mean_absolute.value


def _broken(engine: Engine, answer: EngineAnswer) -> tuple[GuardFinding, ...]:
    if not answer.broken:
        return ()
    evidence = f"{answer.broken} log-probabilities are infinite or no numbers, in {answer.dtype}"
    return (GuardFinding(check=f"engine {engine.name}", holds=False, evidence=evidence),)


def _sequence_kl(model: CausalModel, states: Tensor, logits: Tensor) -> float:
    """Mean KL from the reference's final states [length, width] to logits [length - 1, vocab]."""
    if logits.shape[1] != model.vocab_size:
        raise EngineError(
            f"an engine gives {logits.shape[1]} logits a token, the reference has {model.vocab_size}"
        )
    rows = max(1, _ROWS // model.vocab_size)
    total = 0.0
    for start in range(0, len(logits), rows):
        part = logits[start : start + rows].to(model.device)
        with torch.no_grad():
            ours = model.logits(states[start : start + len(part)].to(model.device))
        total += float(token_kl(ours, part).double().sum())
    return total / len(logits)


def _kl_interval(kl: Tensor) -> Interval:
    return mean_interval(kl.double().mean(dim=1).tolist())
