"""A bisect's criterion that the user brings: a command that is given each hybrid as a folder.

The exit codes are those of `git bisect run`: 0 good, 125 cannot be tested, 1 to 124 bad; anything else ends
the search. The command is split like a shell would and run without one.
"""

import json
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantriage.checkpoint.shard_writer import ShardWriter
from quantriage.diagnose.bisect import Taken
from quantriage.diagnose.hybrid import Pair, Unit
from quantriage.errors import QuantriageError, UsageError
from quantriage.formats.stored_settings import CONFIG_NAME
from quantriage.model.causal import CausalModel
from quantriage.records.storage import writing

PLACE = "{}"  # stands for the folder in the command
SKIP = 125
_SHARD_BYTES = 1 << 30


@dataclass(frozen=True)
class Command:
    """Bad where the command says so. Its output goes to `log`; a hybrid lives in `folder` while it runs."""

    command: str
    model: CausalModel
    pair: Pair
    units: Mapping[str, Unit]
    folder: Path
    log: Path

    @property
    def text(self) -> str:
        """What was asked."""
        return f"command: {self.command}"

    def begin(self, units: Taken, value: float) -> bool:
        """Whether there is something to search."""
        return bool(self.bad(units, value))

    def measure(self, taken: Taken) -> float:
        """The command's exit code for a hybrid. Disk: one dense checkpoint."""
        write_hybrid(self.model, self.pair, [self.units[name] for name in taken], self.folder)
        try:
            return float(self._run())
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def bad(self, taken: Taken, value: float) -> bool | None:  # noqa: ARG002
        """The verdict of an exit code."""
        return None if value == SKIP else value != 0

    def _run(self) -> int:
        words = shlex.split(self.command)
        path = str(self.folder.absolute())
        placed = [word.replace(PLACE, path) for word in words]
        arguments = placed if placed != words else [*words, path]
        with writing(self.log), self.log.open("ab") as log:
            try:
                done = subprocess.run(
                    arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False
                )
            except OSError as error:
                raise UsageError(f"--command {self.command!r} cannot be run: {error}") from error
        if done.returncode in (126, 127) or not 0 <= done.returncode < 128:
            raise QuantriageError(
                f"--command {self.command!r} ended with {done.returncode}; expected 0 (good), 1 to 124 (bad) "
                f"or {SKIP} (cannot be tested). Its output is in {self.log}"
            )
        return done.returncode


def write_hybrid(model: CausalModel, pair: Pair, taken: list[Unit], folder: Path) -> None:
    """Write a hybrid as a dense checkpoint in the reference's dtype, with the reference's tokenizer.

    Memory: one tensor. Values that the dtype cannot hold become infinite, as they would in an engine.
    """
    weights = pair.taking(taken)
    hybrid = model.with_weights(weights)
    checkpoint = model.checkpoint
    dtype = checkpoint.stored_dtype
    names = hybrid.used_tensors()
    with ShardWriter(folder, _SHARD_BYTES, replace=True) as writer:
        for name in names:
            tensor = weights.get(name)
            writer.add(name, tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor)
        config = json.loads(checkpoint.config.to_json_string(use_diff=True))
        config["architectures"] = [model.architecture]
        config["dtype"] = str(dtype).removeprefix("torch.")
        if all(name in names for pair_names in model.tied().items() for name in pair_names) and model.tied():
            config["tie_word_embeddings"] = False  # both are stored, and may differ
        writer.add_file(CONFIG_NAME, (json.dumps(config, indent=2) + "\n").encode())
        for name, content in checkpoint.carried_files().items():
            writer.add_file(name, content)
