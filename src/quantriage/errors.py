"""One exception tree for everything a user can get wrong or a machine can run out of.

Each class carries the exit code that the command line returns for it, so that a script can tell a bad
checkpoint from a budget that cannot be met. Messages say what was found, what was expected, what to do.
"""


class QuantriageError(Exception):
    """Base of all errors that end a command with one clear line. `exit_code` is the process's status."""

    exit_code = 1


class UsageError(QuantriageError):
    """An option or argument that cannot be taken."""

    exit_code = 2


class CheckpointError(QuantriageError):
    """A checkpoint that is missing, truncated, lying, unsafe or of an unknown kind."""

    exit_code = 3


class DataError(QuantriageError):
    """Calibration or evaluation text that cannot be used as asked."""

    exit_code = 4


class BudgetError(QuantriageError):
    """A bit budget, group size or scheme that no menu entry meets."""

    exit_code = 5


class ArchitectureError(QuantriageError):
    """A model whose structure the stream cannot run block by block, with what was found."""

    exit_code = 6


class ResumeError(QuantriageError):
    """A run folder whose frozen settings differ from the ones asked for."""

    exit_code = 7


class StorageError(QuantriageError):
    """A disk that is full or a folder that cannot be written."""

    exit_code = 8


class EngineError(QuantriageError):
    """A serving engine that cannot be started, refuses a checkpoint, or gives no usable answer."""

    exit_code = 10


def reason_of(error: BaseException) -> str:
    """The first line of what another library raised, at most 300 letters, or the error's kind."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
