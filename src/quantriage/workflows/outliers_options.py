"""What `outliers` takes. No torch here, so that `--help` stays fast."""

from dataclasses import dataclass
from pathlib import Path

from quantriage.workflows.options import KeepsStates, option, required


@dataclass(frozen=True, kw_only=True)
class OutliersOptions(KeepsStates):
    """`outliers`: where a model's outliers are, in weights and activations, and what to do about them."""

    model: str = required("model folder, .gguf or .safetensors file, or hub id")
    text: tuple[Path, ...] = option(
        (), "text files (.txt, .md, .jsonl) to run the model on; without any, weights only"
    )
    run: Path | None = option(None, "write the records and a report here")
    scheme: tuple[str, ...] = option(
        ("w4a-g64", "w4a-channel"), "schemes whose wasted code points and errors to measure"
    )
    sequences: int = option(8, "windows of the text")
    length: int = option(512, "tokens in each window")
    seed: int = option(0, "seed of the windows")
    device: str = option("cpu", "torch device to compute on")
    state_gb: float = option(4.0, "hidden states kept in memory before they spill to disk, GB")

    def __post_init__(self) -> None:
        self.check_sizes(1)
