"""What `sweep` takes. No torch here, so that `--help` stays fast."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantriage.errors import UsageError
from quantriage.workflows.options import CalibrationOptions

CHOICES: dict[str, str] = {
    "group-size": "how many weights should share a scale?",
    "symmetry": "is a stored zero point worth its bits?",
    "clipping": "how much of each group's range should be kept?",
    "act-order": "does it help to round the columns with the largest inputs first?",
    "damping": "how much should be added to the Hessian's diagonal?",
    "awq-alpha": "how strongly should columns be scaled by the size of their inputs?",
    "smoothquant-alpha": "how much of the activations' range should move into the weights?",
    "calibration": "how many calibration samples are enough, and how long?",
    "method": "which rounding method is best at this scheme?",
}


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _required(text: str) -> Any:
    return field(metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class SweepOptions(CalibrationOptions):
    """`sweep`: vary one choice of a quantization, hold the rest, recommend, and confirm on held-out text."""

    model: str = _required("model folder, .gguf or .safetensors file, or hub id")
    choice: tuple[str, ...] = _required(f"what to vary: {', '.join(CHOICES)}")
    evaluate: tuple[Path, ...] = _required("text files to confirm on; must not overlap calibration")
    run: Path = _required("folder for the records and the report; resumes")
    scheme: str = _option("w4a-g64", "scheme to start from; smoothquant-alpha always takes w8s-channel")
    method: str = _option("rtn", "rounding for group-size and symmetry: rtn, gptq, gptq-plain, ...")
    selection_sequences: int = _option(16, "windows of calibration text held out to decide on")
    evaluation_sequences: int = _option(16, "held-out windows to confirm on")
    evaluation_length: int = _option(512, "tokens in each held-out window")

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [choice for choice in self.choice if choice not in CHOICES]
        if unknown or not self.choice:
            found = f"--choice {unknown[0]}" if unknown else "no --choice"
            raise UsageError(f"{found}: expected one or more of {', '.join(CHOICES)}")
        for name in ("selection_sequences", "evaluation_sequences"):
            if getattr(self, name) < 2:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} {getattr(self, name)}: an interval needs 2 or more")
