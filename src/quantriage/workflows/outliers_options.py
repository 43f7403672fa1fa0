"""What `outliers` takes. No torch here, so that `--help` stays fast."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantriage.errors import UsageError


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class OutliersOptions:
    """`outliers`: where a model's outliers are, in weights and activations, and what to do about them."""

    model: str = field(metadata={"help": "model folder, .gguf or .safetensors file, or hub id"})
    text: tuple[Path, ...] = _option(
        (), "text files (.txt, .md, .jsonl) to run the model on; without any, weights only"
    )
    run: Path | None = _option(None, "write the records and a report here")
    scheme: tuple[str, ...] = _option(
        ("w4a-g64", "w4a-channel"), "schemes whose wasted code points and errors to measure"
    )
    sequences: int = _option(8, "windows of the text")
    length: int = _option(512, "tokens in each window")
    seed: int = _option(0, "seed of the windows")
    device: str = _option("cpu", "torch device to compute on")
    state_gb: float = _option(4.0, "hidden states kept in memory before they spill to disk, GB")

    def __post_init__(self) -> None:
        for name in ("sequences", "length"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: expected 1 or more")
        if not self.state_gb >= 0:
            raise UsageError(f"--state-gb {self.state_gb}: expected 0 or more")

    @property
    def state_bytes(self) -> int:
        """The state budget in bytes."""
        return int(self.state_gb * 1e9)
