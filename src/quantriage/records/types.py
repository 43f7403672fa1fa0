"""What a run leaves behind, as plain data: every figure in a report comes from one of these.

Records are frozen msgspec structs, so JSON in and out is validated and an unknown key is an error. No
torch here: a report, a resume or a bisect reads records, never live objects. KL is in nats per token,
reference to candidate; perplexity is exp(mean negative log-likelihood); bytes count codes, scales and
zero points as stored.
"""

from typing import Literal

import msgspec

Severity = Literal["info", "warning", "error"]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all records: frozen, keyword-only, unknown fields refused."""


class Interval(Record, frozen=True):
    """A point estimate with its 95% confidence interval (bootstrap over sequences)."""

    value: float
    low: float
    high: float


class Finding(Record, frozen=True):
    """Something a person should know: a fallback taken, a resolved choice, a danger seen."""

    severity: Severity
    code: str  # stable, kebab-case: "group-size-resolved", "damping-raised", ...
    text: str
    site: str | None = None


END_CATEGORIES = ("embedding", "head", "embedding and head")
"""Categories of weights outside the blocks; the last is a tied one."""


class SiteInfo(Record, frozen=True):
    """One quantizable weight, as the report shows it; an embedding or head stands at the block beside it."""

    name: str  # checkpoint module name, e.g. model.layers.3.mlp.down_proj
    block: int
    module: str  # the name inside its block, e.g. mlp.down_proj
    category: str  # "attention input", "attention output", "mlp", "expert", ...
    shape: tuple[int, int]  # [out, in]
    fused_with: tuple[str, ...] = ()  # sites that must share a scheme


class WeightError(Record, frozen=True):
    """Error of a quantized weight against the original. `relative` is Frobenius over Frobenius."""

    frobenius: float
    relative: float
    maximum: float
    mean_absolute: float


class Sensitivity(Record, frozen=True):
    """What quantizing one site with one scheme costs, by each rung of the ladder that was run."""

    site: str
    scheme: str
    bits: float  # stored bits per weight
    error: WeightError
    fisher: float | None = None  # predicted KL, nats per token
    swap_kl: float | None = None  # KL measured with only this site quantized


class RungCorrelation(Record, frozen=True):
    """Spearman rank correlation between two rungs at one scheme over all sites that have both."""

    scheme: str
    first: str
    second: str
    spearman: float
    sites: int


class Diagnosis(Record, frozen=True):
    """Seeds of a diagnosis for one site: its rank (1 = most sensitive), category and advice in words."""

    site: str
    rank: int
    category: str  # "first block", "last block", "attention input", ...
    share: float  # of the total predicted KL at the base scheme
    recommendation: str


class Assignment(Record, frozen=True):
    """One line of a plan: this site is stored so, rounded by that method."""

    site: str
    scheme: str  # "w4a-g64" ... or "none" for left in full precision
    method: str = "gptq"


class Plan(Record, frozen=True):
    """An explicit assignment for every site, with what it was resolved from."""

    target: str
    assignments: tuple[Assignment, ...]
    bits_per_weight: float
    bytes: int
    predicted_kl: float | None = None
    origin: str = ""  # "budget 4.5 bpw", "uniform w4a-g64", "edited by hand"
    findings: tuple[Finding, ...] = ()


class MixMeasurement(Record, frozen=True):
    """One assignment measured for real on held-out text during selection."""

    label: str
    kind: Literal["mix", "uniform", "first-and-last", "swap"]
    bits_per_weight: float
    bytes: int
    predicted_kl: float | None
    kl: Interval
    chosen: bool = False


class LearningPoint(Record, frozen=True):
    """A measurement while scales are learned. training_kl: mean over the batches since the last one."""

    step: int
    training_kl: float | None
    kl: Interval  # on the selection text


class SequenceScores(Record, frozen=True):
    """Per-sequence means, so that any two evaluations on the same tokens can be compared in pairs."""

    kl: tuple[float, ...]
    nll: tuple[float, ...]
    reference_nll: tuple[float, ...]
    agreement: tuple[float, ...]


class TokenLoss(Record, frozen=True):
    """One place in the text where the candidate departs from the reference."""

    sequence: int
    position: int
    kl: float
    before: str  # text before the predicted token
    actual: str  # the token that stands in the text
    reference_top: str
    candidate_top: str


class EvalResult(Record, frozen=True):
    """A candidate against the reference on identical tokens."""

    label: str
    kind: Literal["reference", "uniform", "first-and-last", "mix", "candidate"]
    bits_per_weight: float  # over the quantized sites; 16 or 32 for a dense model
    body_bytes: int  # stored bytes of the quantizable sites
    file_bytes: int | None  # whole checkpoint on disk; None if it was measured in memory
    tokens: int  # scored positions
    perplexity: Interval
    kl: Interval
    kl_percentiles: dict[str, float]  # "50", "90", "99", "99.9", "max"
    top1_agreement: Interval
    flips: float  # share of positions whose top-1 changed
    sequences: SequenceScores
    worst_tokens: tuple[TokenLoss, ...] = ()
    kl_by_position: tuple[float, ...] = ()  # mean KL in equal bins along the sequence
    source: str = ""  # path of the saved directory, or "in memory"
    digest: str = ""  # of the candidate's bytes, if saved
    blocks_bits_per_weight: float | None = None  # without embedding and head, where the sites have them
    file_bits_per_weight: float | None = None  # bits of the whole checkpoint for each weight of the model


class NoiseFloor(Record, frozen=True):
    """KL of the reference against itself when only the compute dtype or batching changes."""

    dtype: str
    kl: float
    flips: float


class Comparison(Record, frozen=True):
    """Paired difference in mean KL between two evaluations (first minus second), bootstrap over sequences."""

    first: str
    second: str
    difference: Interval


class Proof(Record, frozen=True):
    """The evaluations that a verdict rests on, all on the same held-out tokens."""

    reference_perplexity: Interval
    results: tuple[EvalResult, ...]
    comparisons: tuple[Comparison, ...]
    noise_floor: tuple[NoiseFloor, ...]
    tokens_digest: str


class QuantizedSite(Record, frozen=True):
    """What the method did to one site."""

    site: str
    scheme: str
    method: str
    error: WeightError
    objective: float  # weighted output error of the shipped rounding, relative to the output's power
    rtn_objective: float  # the same objective under RTN
    damping: float  # fraction of the Hessian's mean diagonal that was added
    tokens: int  # calibration tokens the site saw
    seconds: float
    findings: tuple[Finding, ...] = ()


class DataIdentity(Record, frozen=True):
    """Which tokens were used."""

    role: Literal["calibration", "selection", "evaluation"]
    source: str
    sequences: int
    length: int
    digest: str


class Hardware(Record, frozen=True):
    """The machine of a run."""

    cpu: str
    cores: int
    memory_bytes: int
    device: str
    compute_dtype: str
    dtype_reason: str  # the measurement that chose it


class Lock(Record, frozen=True):
    """Everything needed to run it again: versions, hashes of model, data and code, seed, hardware."""

    created: str  # ISO 8601, UTC
    command: str
    versions: dict[str, str]  # quantriage, python, torch, transformers, ...
    code_digest: str
    model_source: str
    model_digest: str
    data: tuple[DataIdentity, ...]
    seed: int
    settings: dict[str, str | int | float | bool | None]
    hardware: Hardware
    output_files: dict[str, str] = {}  # file name -> sha256 of the checkpoint that was shipped


class Stage(Record, frozen=True):
    """How long one stage of a run took and what it needed."""

    name: str
    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int


class Verdict(Record, frozen=True):
    """One sentence and the figures in it."""

    sentence: str
    proven: bool  # shipped mix no worse than every uniform baseline of no more bytes
    shipped: str
    kl: float
    best_uniform_kl: float | None
    rtn_kl: float | None
    perplexity: float
    reference_perplexity: float
    bits_per_weight: float


class RunSummary(Record, frozen=True, kw_only=True):
    """The head of a run folder: what was asked and what became of it.

    target, budget, verdict: of a run that makes a checkpoint.
    """

    title: str
    model: str
    target: str = ""
    budget: float | None = None
    verdict: Verdict | None = None
    stages: tuple[Stage, ...]
    findings: tuple[Finding, ...] = ()
