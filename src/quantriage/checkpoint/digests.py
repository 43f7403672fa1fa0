"""sha256 of files, streamed: the identity of a checkpoint that locks and caches refer to."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from quantriage.errors import CheckpointError


def file_sha256(path: Path) -> str:
    """Hex sha256 of one file, in pieces of constant memory."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def combined_sha256(parts: Iterable[tuple[str, str]]) -> str:
    """Hex sha256 over (name, hex digest) pairs in the order given."""
    total = hashlib.sha256()
    for name, digest in parts:
        total.update(f"{name}\0{digest}\n".encode())
    return total.hexdigest()
