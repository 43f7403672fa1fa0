"""A folder that appears under its name only when it is complete.

For results that are mostly copies of other files. `ShardWriter` does the same for tensors that come one by
one; it names and indexes its own shards, which a copy must not.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantriage.errors import StorageError
from quantriage.records.atomic import sync_folder
from quantriage.records.storage import writing


@contextmanager
def new_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary sibling to fill; it gets the name `folder` at the end and is removed on any failure.

    replace: what is there goes when the new one is complete. Raises StorageError if `folder` exists and is
    not an empty folder, or on a full disk.
    """
    if not replace:
        check_free(folder)
    folder = folder.absolute()
    partial = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            for path in partial.rglob("*"):
                if path.is_file():
                    _sync_file(path)
            sync_folder(partial)
            _publish(partial, folder, replace)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, folder: Path, replace: bool) -> None:
    """Rename; what is replaced comes back if that fails."""
    old = folder.parent / f".{folder.name}.replaced-{os.getpid()}"
    replaced = replace and folder.exists()
    if replaced:
        folder.rename(old)
    try:
        partial.rename(folder)
    except OSError:
        if replaced:
            old.rename(folder)
        raise
    if replaced:
        shutil.rmtree(old)


def check_free(folder: Path) -> None:
    """Raise StorageError unless `folder` may be made: before hours of work rather than after."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise StorageError(f"{folder}: exists and is no folder; choose another place")
    if folder.is_dir() and any(folder.iterdir()):
        raise StorageError(f"{folder}: exists and is not empty; choose another place")


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
