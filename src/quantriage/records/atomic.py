"""Write a file so that its final name never holds half of it.

Temporary name in the same folder (a rename across file systems is a copy), flush, fsync, rename, fsync of
the folder. Rejected: writing in place with a backup beside it, which needs a repair step after every kill.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from quantriage.records.storage import writing


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` under `path` in one step. Raises StorageError on a full disk or a forbidden folder."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that gets its name, `path`, when the block ends well; otherwise nothing is left.

    Raises StorageError on a full disk or a forbidden folder.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with writing(path):
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:  # also KeyboardInterrupt: no temporary file may stay behind
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in `folder` survive a power cut; a no-op where folders cannot be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
