"""Records of looking at somebody else's quantized checkpoint: lint, attribution, bisect, split, repair.

As in types.py: plain data, KL in nats per token from reference to candidate, names as in a Hugging Face
checkpoint. A `unit` is what can be swapped between two checkpoints: a site's module (weight and bias), or one
other tensor (a norm, the embedding, the head).
"""

from typing import Literal

from quantriage.records.types import Finding, Interval, Record, Severity


class LintFinding(Record, frozen=True):
    """One thing that is wrong with a file, seen without running the model."""

    check: str  # stable, kebab-case: "zero-scale", "swapped-tensors", "config-differs", ...
    severity: Severity
    site: str | None  # module or tensor name; None: the whole checkpoint
    evidence: str  # what was found, with figures
    cause: str  # the likely cause, in words
    action: str  # what to do
    thread: str = ""  # public thread that describes it, if one is known


class ConfigDifference(Record, frozen=True):
    """One setting that differs between reference and candidate."""

    file: str  # "config.json", "tokenizer", "chat template", "generation_config.json"
    key: str
    reference: str
    candidate: str
    matters: bool  # whether it changes what the model computes


class Lint(Record, frozen=True):
    """Everything a lint saw."""

    candidate: str
    reference: str | None
    layout: str  # the candidate's format
    sites: int
    bytes: int
    seconds: float
    peak_memory_bytes: int
    findings: tuple[LintFinding, ...]
    differences: tuple[ConfigDifference, ...] = ()


Judgement = Literal["fine", "hard", "badly done", "damaged"]


class UnitAttribution(Record, frozen=True):
    """What one unit of the candidate costs, and whether it had to."""

    unit: str
    block: int | None
    category: str
    layout: str  # how it is stored: "w4a-g128", "Q4_K", "dense", ...
    bits: float
    relative_error: float  # Frobenius of the difference over Frobenius of the reference
    nearest_error: float | None  # the same for plain rounding in the same scheme, where there is one
    predicted_kl: float | None = None  # Fisher score of the actual difference
    noise_ratio: float | None = None  # predicted KL over that of random errors of the same norm
    swap_kl: float | None = None  # reference with only this unit taken from the candidate
    restore_gain: float | None = None  # candidate's KL minus its KL with only this unit restored
    optimal_kl: float | None = None  # predicted KL of the best rounding known here in the same scheme
    judgement: Judgement = "fine"
    reason: str = ""
    plain_kl: float | None = (
        None  # reference with only this unit, rounded plainly in its scheme; measured for a few
    )


class Attribution(Record, frozen=True):
    """Where the candidate's KL comes from."""

    total_kl: float
    additivity: float | None  # sum of swap (else predicted) KL of all units over the total
    units: tuple[UnitAttribution, ...]
    forwards: float  # whole-model forward passes used; a part of a pass counts as that part
    forwards_one_by_one: float  # what swapping every unit with whole passes would use
    seconds: float
    budget_seconds: float
    truncated: bool  # the time budget ended the true swaps early


class BisectStep(Record, frozen=True):
    """One question put to the criterion: is the candidate still bad with only these units of its own?"""

    number: int
    units: tuple[str, ...]  # taken from the candidate; all others from the reference
    value: float | None  # KL or perplexity; None for a command
    bad: bool


class Bisection(Record, frozen=True):
    """The smallest set of units found that explains the regression."""

    criterion: str  # "KL > 0.05", "perplexity > 25", "command: ..."
    culprits: tuple[str, ...]
    evaluations: int
    one_by_one: int  # evaluations of trying each unit alone
    value_all: float | None  # the criterion's figure with all units from the candidate
    value_culprits: float | None  # with only the culprits
    value_without: float | None  # with all but the culprits
    steps: tuple[BisectStep, ...]


class SplitLeg(Record, frozen=True):
    """One way of evaluating the candidate."""

    part: Literal["weights", "runtime", "data"]
    label: str  # "candidate's weights in reference math", "transformers' quantized path", prompts' name
    engine: str  # "quantriage float32", "transformers 5.23", "vllm 0.32", "llama.cpp"
    kl: (
        Interval | None
    )  # against the reference, or None where the engine gives log-probabilities of the text only
    nll_shift: Interval | None  # mean change of -log p(text), nats per token
    largest_difference: float | None  # of log-probabilities of the text against the first leg
    noise_floor: float | None  # of `mean_difference` for a runtime, of `kl` else
    tokens: int
    # mean |change of log p(text)|: of a runtime against the candidate in our mathematics, else the reference
    mean_difference: Interval | None = None
    explained_kl: float | None = None  # what plain rounding in the candidate's schemes loses on these tokens
    excess_kl: Interval | None = None  # KL minus what is allowed beside plain rounding's, in pairs by window


class GuardFinding(Record, frozen=True):
    """A condition that must hold before two evaluations may be compared."""

    check: str  # "tokenizer", "tokens", "chat-template", "context", "sampling", "dtype"
    holds: bool
    evidence: str


class Split(Record, frozen=True):
    """Weights, runtime or data: which of the three carries the loss."""

    guards: tuple[GuardFinding, ...]
    legs: tuple[SplitLeg, ...]
    carrier: Literal["weights", "runtime", "data", "none", "not comparable"]
    sentence: str


class Cause(Record, frozen=True):
    """What diagnosis concludes about one unit or the whole checkpoint."""

    code: str  # the lint check or attribution judgement it rests on
    units: tuple[str, ...]  # empty: the whole checkpoint
    kl: float | None
    sentence: str
    action: str


class CandidateDiagnosis(Record, frozen=True):
    """The head of a diagnosis."""

    reference: str
    candidate: str
    layout: str
    verdict: Literal["healthy", "damaged", "badly quantized", "at the limit of its bits", "not comparable"]
    sentence: str
    causes: tuple[Cause, ...]


class RepairedUnit(Record, frozen=True):
    """One unit that a repair replaced."""

    unit: str
    before: str  # scheme or type
    after: str
    bytes_added: int
    predicted_before: float | None
    predicted_after: float | None


class Repair(Record, frozen=True):
    """What a repair changed and what it gained, measured on the saved file."""

    candidate: str
    out: str
    units: tuple[RepairedUnit, ...]
    bytes_before: int
    bytes_after: int
    kl_before: Interval
    kl_after: Interval
    tensors_unchanged: int  # byte for byte as in the candidate
    difference: Interval | None = None  # KL after minus before, paired by sequence
    proven: bool = False  # the whole interval of the difference lies below zero
    opens: str = ""  # what to open: the folder, or the file in it
    findings: tuple[Finding, ...] = ()
