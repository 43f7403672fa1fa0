"""A full disk or a forbidden folder as one clear StorageError, wherever bytes are written."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantriage.errors import StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # EFBIG: a file-size limit (ulimit -f)
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn every OSError of the block into a StorageError that names `path` and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            reason = f"no space left ({error.strerror}); free some, or choose another place"
        elif error.errno in _FORBIDDEN:
            reason = f"may not be written ({error.strerror}); choose another place"
        else:
            reason = f"cannot be written ({error.strerror or error})"
        raise StorageError(f"{path}: {reason}") from error
