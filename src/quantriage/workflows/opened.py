"""A model opened for a command, with what every verb needs of it: map, tokenizer, compute, token sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from quantriage.data.token_set import Role, TokenSet
from quantriage.data.windows import build_tokens, check_vocabulary
from quantriage.formats.checkpoint import Checkpoint, open_checkpoint
from quantriage.formats.tokenizers import Tokenizer
from quantriage.model.causal import CausalModel
from quantriage.model.discover import discover
from quantriage.model.site import ModelMap
from quantriage.records.ledger import Setting, frozen_in
from quantriage.records.lock import make_lock
from quantriage.records.types import DataIdentity, Hardware, Lock
from quantriage.stream.compute import Compute, choose_compute, resumed_compute


@dataclass(frozen=True)
class OpenedModel:
    """Checkpoint, streaming model, map of its sites, and the compute chosen for statistics."""

    source: str
    checkpoint: Checkpoint
    model: CausalModel
    map: ModelMap
    compute: Compute

    @property
    def label(self) -> str:
        """A short name for titles."""
        return self.checkpoint.path.stem if self.checkpoint.path.is_file() else self.checkpoint.path.name

    def tokens(
        self, paths: Sequence[Path], sequences: int, length: int, role: Role, seed: int = 0
    ) -> TokenSet:
        """Windows of text in this model's tokens; DataError if they do not fit the model."""
        tokenizer: Tokenizer = self.checkpoint.tokenizer()
        tokens = build_tokens(paths, tokenizer, sequences, length, seed, role)
        check_vocabulary(tokenizer, self.model.vocab_size, [tokens])
        return tokens

    def lock(
        self,
        command: str,
        data: Sequence[DataIdentity],
        seed: int,
        settings: Mapping[str, Setting],
        output_files: Mapping[str, str] | None = None,
    ) -> Lock:
        """The lock of a run over this model: versions, hashes, hardware."""
        return make_lock(
            command=command,
            model_source=self.source,
            model_digest=self.checkpoint.digest(),
            data=data,
            seed=seed,
            settings=settings,
            hardware=self.hardware(),
            output_files=output_files,
        )

    def hardware(self) -> Hardware:
        """The machine and the dtype choice, for a lock."""
        return Hardware(
            cpu=cpu_name(),
            cores=psutil.cpu_count(logical=True) or 1,
            memory_bytes=psutil.virtual_memory().total,
            device=str(self.compute.device),
            compute_dtype=self.compute.dtype_name,
            dtype_reason=self.compute.reason,
        )


def open_model(source: str, device: str = "cpu", dtype: str | None = None) -> OpenedModel:
    """Open a folder, file or hub id, and discover its sites by running it on noise.

    dtype: "float32" or "bfloat16" as an earlier try of the run chose; None measures.
    """
    checkpoint = open_checkpoint(source)
    model = CausalModel(checkpoint, device)
    compute = resumed_compute(device, dtype) if dtype else choose_compute(device, model.hidden_size)
    return OpenedModel(source, checkpoint, model, discover(model), compute)


def started_dtype(ledger: Path) -> str | None:
    """The compute dtype that a run's ledger froze; None for a new run."""
    found = frozen_in(ledger).get("compute")
    return found if isinstance(found, str) else None


def cpu_name() -> str:
    """The processor as its system names it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    import platform

    return platform.processor() or platform.machine()
