"""Records of a speed measurement: every round as it was timed, and what the rounds say.

Rates are tokens per second of one prompt and one sequence. An interval is over rounds: a geometric mean with
Student's t on the logarithms. Ratios are paired by round, since rounds of all engines take turns.
"""

from typing import Literal

from quantriage.records.types import Hardware, Interval, Record

Outcome = Literal["faster", "slower", "not told apart"]


class BenchRound(Record, frozen=True):
    """One prompt and the tokens after it, in seconds of the clock; `cpu` of all the engine's threads."""

    number: int
    place: int  # in the order of that round
    first: float  # to the first new token
    total: float
    cpu: float


class OperationShare(Record, frozen=True):
    """One operation's share of the time of a decode step, by the engine's own profiler."""

    name: str
    share: float


class BenchEntry(Record, frozen=True):
    """One checkpoint in one engine."""

    label: str  # unique in the record
    checkpoint: str
    digest: str
    kind: str  # as the format is detected: "dense", "gguf", "compressed-tensors", ...
    layout: str  # "w4a-g64", "Q4_K", "dense", ...
    engine: str
    version: str
    dtype: str  # what it computes in, by its own account
    reference: bool  # unquantized
    file_bytes: int
    weight_bytes: int | None  # of parameters in memory after the rounds; None: the engine does not tell
    load_seconds: float
    prefill: Interval  # prompt tokens per second until the first new token
    decode: Interval  # tokens per second after it
    first_token: Interval  # seconds
    cpu_per_token: Interval  # CPU seconds of a round over the tokens it made
    memory_before: int  # resident bytes with the engine imported and no model
    peak_memory: int  # largest resident bytes of the engine's process
    gpu_memory: int | None
    rounds: tuple[BenchRound, ...]
    kernels: tuple[str, ...] = ()  # what the engine printed of them
    operations: tuple[OperationShare, ...] = ()


class SpeedReason(Record, frozen=True):
    """Why a quantized model is not faster. `measured`: seen in this run, not inferred from the format."""

    code: str  # stable, kebab-case: "decompressed-on-load", "dequantized-on-each-call", ...
    text: str
    measured: bool


class BenchComparison(Record, frozen=True):
    """A checkpoint against the unquantized model, paired by round. A ratio above 1 is in its favour."""

    label: str
    reference: str
    same_engine: bool
    prefill: Interval
    decode: Interval
    first_token: Interval  # reference's seconds over its own
    cpu: Interval  # reference's CPU seconds over its own
    memory: float  # its peak over the reference's; below 1 is less
    prefill_outcome: Outcome
    decode_outcome: Outcome
    reasons: tuple[SpeedReason, ...]
    sentence: str


class BenchFailure(Record, frozen=True):
    """A checkpoint that an engine did not run, and what it said."""

    checkpoint: str
    engine: str
    error: str


class Bench(Record, frozen=True):
    """A whole measurement on one machine in one run."""

    hardware: Hardware
    threads: int
    prompt_tokens: int
    new_tokens: int
    warmup: int
    rounds: int
    read_bandwidth: float  # bytes per second at which this machine's memory is read with those threads
    others_busy: float  # share of the machine's CPU time that other processes took during the rounds
    idle_busy: float  # CPU time of engines that waited for their turn, over the rounds' time
    entries: tuple[BenchEntry, ...]
    comparisons: tuple[BenchComparison, ...]
    failures: tuple[BenchFailure, ...]
    conditions: tuple[str, ...]
    sentence: str
