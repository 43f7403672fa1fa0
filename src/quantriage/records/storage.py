"""A full disk, a forbidden folder or an unreadable file as one clear error that names the path.

One context manager each for writing and reading, instead of an `except OSError` at every call: the list of
causes that a person can act on stands in one place. Causes we cannot name pass through unchanged, because
a wrong advice is worse than a traceback.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantriage.errors import QuantriageError, StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # EFBIG: a file-size limit (ulimit -f)
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NOT_A_PLACE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the OSErrors of a write to `path` that we can name into StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                f"{path}: the disk is full; free some space or choose another folder"
            ) from error
        if error.errno in _FORBIDDEN:
            raise StorageError(
                f"{path}: cannot be written ({error.strerror}); choose a folder you may write to"
            ) from error
        if error.errno in _NOT_A_PLACE:
            raise StorageError(
                f"{path}: cannot be written ({error.strerror}); expected a folder with room for this file"
            ) from error
        raise


@contextmanager
def reading(path: Path, made_by: str) -> Iterator[None]:
    """Turn a missing or forbidden file into QuantriageError; `made_by` says what would have written it."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise QuantriageError(f"{path}: not found; {made_by}") from error
    except IsADirectoryError as error:
        raise QuantriageError(f"{path}: is a folder, expected a file; {made_by}") from error
    except PermissionError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror}); change its permissions") from error
