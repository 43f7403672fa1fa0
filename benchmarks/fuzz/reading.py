"""Open a mutated checkpoint as a command would, read all of it, and hold what comes back against itself.

Nothing but CheckpointError may come out. What is read must also agree with what was announced: a reader that
gives another shape than its `shape`, or codes beyond its levels, has believed a lie.
"""

from math import prod
from pathlib import Path

from torch import Tensor

from benchmarks.fuzz.seeds import LINT
from quantriage.checkpoint.gguf_file import open_gguf
from quantriage.errors import CheckpointError, QuantriageError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.formats.gguf_blocks import stored_blocks
from quantriage.formats.weight_source import WeightSource
from quantriage.numerics.stored_weight import StoredWeight
from quantriage.workflows.lint import lint
from quantriage.workflows.options import LintOptions


class ContradictionError(Exception):
    """What was read contradicts what the reader said of it."""


def read(reader: str, path: Path, reference: Path | None = None) -> bool:
    """Everything that `reader` reads of it; whether it could be opened. `reference` is for lint."""
    try:
        if reader == LINT:
            lint(LintOptions(candidate=str(path), reference=None if reference is None else str(reference)))
        else:
            if path.suffix == ".gguf":
                _read_blocks(path)
            _read_weights(open_checkpoint(path).weights)
    except CheckpointError:
        return False
    except QuantriageError as error:  # others have causes that no file should be
        if reader == LINT:
            return False
        raise ContradictionError(f"{type(error).__name__}: {error}") from error
    return True


def _read_blocks(path: Path) -> None:
    """Every tensor of a GGUF file, whatever model it may be."""
    source = open_gguf(path)
    for name in source.names():
        try:
            shape, value = source.meta(name).shape, source.get(name)
            _check(name, shape, value, stored_blocks(source, name) if len(shape) > 1 else None)
        except CheckpointError:
            continue


def _read_weights(weights: WeightSource) -> None:
    for name in weights.names():
        module = name.removesuffix(".weight")
        try:
            shape = weights.shape(name)
            value = weights.get(name)
            _check(name, shape, value, weights.stored(module) if module != name else None)
        except CheckpointError:
            continue


def _check(name: str, shape: tuple[int, ...], value: Tensor, stored: StoredWeight | None) -> None:
    if tuple(value.shape) != tuple(shape):
        raise ContradictionError(f"{name}: shape says {shape}, get gives {tuple(value.shape)}")
    if stored is None:
        return
    if prod(stored.shape) != value.numel():
        raise ContradictionError(f"{name}: stored has {stored.shape}, get gives {tuple(value.shape)}")
    if stored.codes is None:
        return
    if tuple(stored.codes.shape) != stored.shape:
        raise ContradictionError(f"{name}: codes of {tuple(stored.codes.shape)} for {stored.shape}")
    if int(stored.codes.max()) >= stored.levels:
        raise ContradictionError(f"{name}: code {int(stored.codes.max())} of {stored.levels} levels")
