"""What `sweep` takes. No torch here, so that `--help` stays fast."""

from dataclasses import dataclass
from pathlib import Path

from quantriage.errors import UsageError
from quantriage.workflows.options import CalibrationOptions, option, required

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


@dataclass(frozen=True, kw_only=True)
class SweepOptions(CalibrationOptions):
    """`sweep`: vary one choice of a quantization, hold the rest, recommend, and confirm on held-out text."""

    model: str = required("model folder, .gguf or .safetensors file, or hub id")
    choice: tuple[str, ...] = required(f"what to vary: {', '.join(CHOICES)}")
    evaluate: tuple[Path, ...] = required("text files to confirm on; must not overlap calibration")
    run: Path = required("folder for the records and the report; resumes")
    scheme: str = option("w4a-g64", "scheme to start from; smoothquant-alpha always takes w8s-channel")
    method: str = option("rtn", "rounding for group-size and symmetry: rtn, gptq, gptq-plain, ...")
    selection_sequences: int = option(16, "windows of calibration text held out to decide on")
    evaluation_sequences: int = option(16, "held-out windows to confirm on")
    evaluation_length: int = option(512, "tokens in each held-out window")

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
