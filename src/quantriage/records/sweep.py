"""Records of a sweep: one choice varied, everything else held, and what came of following the recommendation.

As in types.py: plain data, KL in nats per token from reference to candidate. Per-sequence KL is kept, so that
any two variants can be compared in pairs long after the run.
"""

import math
from typing import Literal

from quantriage.records.types import Finding, Interval, Record

PER_BIT = 4.0  # what one more bit divides the power of a uniform grid's error by


def kl_left(extra_bits: float) -> float:
    """Share of KL left after `extra_bits` per weight went into one more bit for a share of the weights.

    KL is taken as proportional to the error's power, which holds while it is small. Widths in between do not
    exist in a checkpoint, so between whole bits it falls along the straight line of a mix. Negative: saved.
    """
    whole = math.floor(extra_bits)
    return float(PER_BIT**-whole * (1 - (extra_bits - whole) * (1 - 1 / PER_BIT)))


class ErrorParts(Record, frozen=True):
    """Squared weight error of all sites, told apart; a weight counts as clipped if its code was out of range.

    `clipping` and `rounding` are shares of the weights' own power and add up to the whole error exactly.
    """

    clipped: int
    weights: int
    clipping: float
    rounding: float


class SweepVariant(Record, frozen=True):
    """One setting of the choice."""

    label: str
    value: float | None  # the setting as a number, where it is one
    scheme: str  # as asked for; findings say where a layer got another
    method: str
    bits_per_weight: float  # over the sites, as an export stores them
    bytes: int
    rmse: float  # of the weights
    relative_error: float  # Frobenius of the weights' error over Frobenius of the weights
    output_error: float | None  # power of the layers' output error over that of their output, summed
    joint_error: float | None  # the same on sampled inputs that were quantized too (activations in 8 bits)
    parts: ErrorParts | None
    rounding_cpu_seconds: float
    statistics_cpu_seconds: (
        float  # of the pass that gathered what the rounding needs; shared between variants
    )
    calibration_tokens: int
    kl: Interval  # on the selection text, as are the following
    perplexity: Interval
    top1_agreement: float
    kl_at_equal_size: float  # KL over `kl_left` of the difference in bits to the baseline
    against_baseline: Interval | None  # KL minus the baseline's, paired by sequence; None for the baseline
    kl_sequences: tuple[float, ...]
    loads: tuple[str, ...]  # targets that load the result
    loads_note: str = ""
    findings: tuple[Finding, ...] = ()


class SweepOptimum(Record, frozen=True):
    """The best setting of one layer, by its own error and without a look at the others."""

    site: str
    block: int
    category: str
    best_plain: float | None  # by squared weight error
    best_output: float | None  # by the layer's output error
    plain_gain: float | None  # error at best_plain over error at the baseline's setting
    output_gain: float | None


class Confirmation(Record, frozen=True):
    """The recommended variant against one other on text that took no part in the choice."""

    recommended: str
    against: str
    recommended_kl: Interval
    against_kl: Interval
    recommended_perplexity: Interval
    against_perplexity: Interval
    difference: Interval  # KL, recommended minus against, paired by sequence
    difference_at_equal_size: Interval  # the same with the recommended one's KL taken to the other's size
    verdict: Literal["wins", "no difference shown", "loses"]


class Sweep(Record, frozen=True):
    """One choice, its variants in order, and what to do."""

    choice: str
    question: str
    model: str
    scheme: str
    method: str
    baseline: str  # label of the variant without the choice
    reference_perplexity: Interval  # on the selection text
    reference_perplexity_held_out: Interval
    variants: tuple[SweepVariant, ...]
    optima: tuple[SweepOptimum, ...]
    recommended: str
    reason: str
    confirmation: Confirmation
    notes: tuple[str, ...]
    seconds: float
    peak_memory_bytes: int


class SweepRun(Record, frozen=True):
    """All sweeps of one run folder, by choice."""

    sweeps: tuple[Sweep, ...]
