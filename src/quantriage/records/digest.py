"""Content hashes: the identity of a file, of some bytes and of this package's own code.

sha256 throughout, in hex: slower than the fast hashes of the day, but every system has a tool to check it.
The code digest covers the sources themselves rather than a version number, since most runs that need
explaining were made from an edited checkout.
"""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from quantriage.records.storage import reading

_CODE_SUFFIXES = {".py", ".j2", ".css", ".js"}


def bytes_digest(data: bytes) -> str:
    """Hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """Hex sha256 of a file's content, read in pieces of constant memory."""
    with reading(path, "a digest was asked of it"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def combined_digest(parts: Iterable[tuple[str, str]]) -> str:
    """Hex sha256 over (name, hex digest) pairs in the order given."""
    total = hashlib.sha256()
    for name, digest in parts:
        total.update(f"{name}\0{digest}\n".encode())
    return total.hexdigest()


@cache
def code_digest() -> str:
    """Combined digest of (relative name, content) of the package's own source files, in order of name."""
    package = Path(__file__).parent.parent
    files = {
        path.relative_to(package).as_posix(): path
        for path in package.rglob("*")
        if path.suffix in _CODE_SUFFIXES and path.is_file()
    }
    return combined_digest((name, file_digest(files[name])) for name in sorted(files))
