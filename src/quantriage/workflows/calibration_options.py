"""What the calibration verbs take; see options.py. No torch here, so that `--help` stays fast."""

from dataclasses import dataclass
from pathlib import Path

from quantriage.errors import UsageError
from quantriage.workflows.options import (
    ITEMS_HELP,
    TASKS_HELP,
    KeepsStates,
    check_task_items,
    option,
    required,
)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """`build`: windows from files, chat logs and hub data sets, without duplicates, mixed by weights."""

    model: str = required("model whose tokenizer and chat template are used")
    source: tuple[str, ...] = required("PATH[=WEIGHT] (.txt, .md, .jsonl) or hub:REPO[:CONFIG][@SPLIT][=W]")
    out: Path = required("token file to write (*.safetensors); give it to any --calibration")
    sequences: int = option(128, "windows; 128 of 2048 tokens or more are recommended")
    length: int = option(2048, "tokens in each window; as long as what is served, if memory allows")
    packing: str = option("packed", "packed: documents joined, windows at random; document: one for each")
    keep_all: bool = option(False, "drop no duplicate or degenerate passages")
    seed: int = option(0, "seed of the windows")
    run: Path | None = option(None, "write the record and a report here")

    def __post_init__(self) -> None:
        if self.packing not in ("packed", "document"):
            raise UsageError(f"--packing {self.packing}: expected packed or document")
        for name in ("sequences", "length"):
            if getattr(self, name) < 2:
                raise UsageError(f"--{name} {getattr(self, name)}: expected 2 or more")


@dataclass(frozen=True, kw_only=True)
class RoundingOptions(KeepsStates):
    """What `compare` and `check` share: how the model is rounded, and where work is kept."""

    model: str = required("model folder, .gguf or .safetensors file, or hub id")
    run: Path = required("folder for the records and the report; resumes")
    scheme: str = option("w4a-g64", "one scheme for every layer; w3a-g64 shows differences more")
    method: str = option("gptq", "rounding: gptq, gptq-one-sided, gptq-unweighted, gptq-plain")
    sequences: int = option(128, "calibration windows")
    length: int = option(512, "tokens in each window")
    seed: int = option(0, "seed of windows and gradient probes")
    device: str = option("cpu", "torch device to compute on")
    state_gb: float = option(4.0, "hidden states kept in memory before they spill to disk, GB")

    def __post_init__(self) -> None:
        self.check_sizes()


@dataclass(frozen=True, kw_only=True)
class CompareSetsOptions(RoundingOptions):
    """`compare`: one quantization for each calibration set, judged on each domain; random tokens as floor."""

    set: tuple[str, ...] = required("calibration text or token file, [NAME=]PATH")
    domain: tuple[str, ...] = required("text to judge on, [NAME=]PATH; must not overlap the sets")
    evaluation_sequences: int = option(16, "windows of each domain to measure on")
    prediction_sequences: int = option(8, "further windows of each domain to predict from; 0: no prediction")
    tasks: tuple[str, ...] = option((), TASKS_HELP)
    task_items: int = option(500, ITEMS_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_task_items(self.task_items)


@dataclass(frozen=True, kw_only=True)
class CheckOptions(RoundingOptions):
    """`check`: does a calibration set cover what production sends, and what would it cost."""

    calibration: Path = required("calibration text or token file")
    production: Path = required("what production sends: prompts (.jsonl, one a row) or text")
    production_sequences: int = option(32, "windows of production to look at")
    add: int = option(0, "most production windows to propose (0: as many as there are of calibration)")
    statistics_only: bool = option(False, "no rounding: tests and mismatch, but no expected cost")
    fix: bool = option(False, "measure the KL before and after on held-out production windows")
