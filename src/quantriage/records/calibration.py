"""Records of calibration sets: how one was built, how several compare, whether one covers production.

As in types.py: plain data, KL in nats per token from reference to candidate. A `set` is text that calibrates,
a `domain` is text that a quantized model is judged on.
"""

from typing import Literal

from quantriage.records.tasks import TaskRun
from quantriage.records.types import DataIdentity, Finding, Interval, Record

SET = "calibration-set.json"  # CalibrationSet
MATRIX = "calibration-matrix.json"  # CalibrationMatrix
CHECK = "calibration-check.json"  # CalibrationCheck


class SourceShare(Record, frozen=True):
    """What one source gave."""

    source: str
    weight: float  # share of the windows asked for
    passages: int  # read
    kept: int  # left after filtering
    tokens: int  # of the kept text
    windows: int
    too_short: int = 0  # documents shorter than a window, where each window is one document's


class Dropped(Record, frozen=True):
    """Passages that one rule took out of one source."""

    source: str
    reason: str
    passages: int
    characters: int
    example: str  # the beginning of the first of them


class CalibrationSet(Record, frozen=True):
    """The manifest of a built token file."""

    tokens: DataIdentity
    tokenizer: str  # digest of its vocabulary
    packing: Literal["packed", "document"]
    seed: int
    sources: tuple[SourceShare, ...]
    dropped: tuple[Dropped, ...]
    tokens_per_input: float  # tokens for each input of the widest quantized layer
    findings: tuple[Finding, ...] = ()


class MatrixCell(Record, frozen=True):
    """One calibration set's quantization on one domain."""

    set: str
    domain: str
    kl: Interval
    perplexity: Interval
    sequence_kl: tuple[float, ...]
    predicted_kl: float | None = None  # Fisher score of the actual rounding on other text of the domain
    mismatch: float | None = None  # production's second moment under the set's inverse, over its own


class PairAgreement(Record, frozen=True):
    """How well a prediction made without running the quantized model ranks what was measured."""

    predictor: Literal["predicted KL", "Hessian mismatch"]
    pairs: int
    spearman: float
    p_value: float
    within_domains: float  # the same over ranks of the sets within each domain
    domains: int


class MatrixSet(Record, frozen=True):
    """A row of the matrix."""

    name: str
    kind: Literal["text", "random", "none"]
    tokens: DataIdentity | None


class SetTasks(Record, frozen=True):
    """One calibration set's quantization against the reference on multiple-choice tasks."""

    set: str
    run: TaskRun


class CalibrationMatrix(Record, frozen=True):
    """Several calibration sets, each judged on several domains."""

    scheme: str
    method: str
    sets: tuple[MatrixSet, ...]
    domains: tuple[DataIdentity, ...]
    domain_names: tuple[str, ...]
    reference_perplexity: tuple[Interval, ...]  # by domain
    cells: tuple[MatrixCell, ...]
    agreements: tuple[PairAgreement, ...]
    sentence: str
    tasks: tuple[SetTasks, ...] = ()


class TwoSample(Record, frozen=True):
    """A test of whether two sets of windows come from one distribution."""

    what: str  # "tokens", "activations"
    statistic: float
    baseline: float  # the mean statistic when windows are dealt at random
    p_value: float


class TokenCoverage(Record, frozen=True):
    """What the tokens alone say."""

    divergence: float  # Jensen-Shannon, nats
    unseen: float  # share of production's tokens whose kind calibration never has
    unseen_within: float  # the same for one half of calibration against its other half
    commonest_unseen: tuple[tuple[str, int], ...]


class InputCoverage(Record, frozen=True):
    """One input tensor, which one or several sites read, on production against calibration.

    ratio: mean of x^T (H + damping)^-1 x over production's tokens, over that of calibration's held-out ones.
    """

    sites: tuple[str, ...]
    block: int
    ratio: float | None  # None: one of the two sent no token here
    p_value: float | None  # adjusted for the number of inputs; None where tokens belong to no window
    outside: float | None  # share of production's tokens beyond calibration's 99th percentile
    range_ratio: float | None  # largest magnitude, production's over calibration's
    worst_channel: int | None
    worst_channel_ratio: float | None
    calibration_tokens: int
    production_tokens: int
    calibrated_error: float | None = None  # of the rounding, relative, under calibration's Hessian
    production_error: float | None = None  # the same rounding under production's
    alarm: bool = False


class PromptCoverage(Record, frozen=True):
    """One prompt, or one window of text, of production."""

    number: int
    excerpt: str
    tokens: int
    ratio: float  # typical leverage of its tokens over that of calibration's held-out ones
    unseen: float  # share of its tokens whose kind calibration never has
    added: int | None = None  # its place among the windows proposed to be added


class ExpectedCost(Record, frozen=True):
    """Predicted KL on production, by which text the rounding was calibrated on; measured with --fix."""

    scheme: str
    method: str
    predicted: float
    predicted_fixed: float
    windows_added: int
    measured: Interval | None = None
    measured_fixed: Interval | None = None
    difference: Interval | None = None  # fixed minus before, paired by window
    held_out: DataIdentity | None = None


class CalibrationCheck(Record, frozen=True):
    """Whether a calibration set covers what production sends."""

    calibration: DataIdentity
    production: DataIdentity
    verdict: Literal["covered", "differs", "not covered"]  # differs: told apart, at no cost shown
    sentence: str
    tests: tuple[TwoSample, ...]
    tokens: TokenCoverage
    inputs: tuple[InputCoverage, ...]
    prompts: tuple[PromptCoverage, ...]  # worst first
    gains: tuple[float, ...]  # mismatch left after each window that is proposed, as a part of all
    cost: ExpectedCost | None
    next_command: str
    findings: tuple[Finding, ...] = ()
