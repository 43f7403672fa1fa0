"""Content hashes: the identity of a file, of some bytes and of this package's own code.

sha256 throughout, in hex: slower than the fast hashes of the day, but every system has a tool to check it.
The code digest covers the sources themselves rather than a version number, since most runs that need
explaining were made from an edited checkout.
"""

import hashlib
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


@cache
def code_digest() -> str:
    """Hex sha256 over (relative name, content) of the package's own source files, in order of name."""
    package = Path(__file__).parent.parent
    total = hashlib.sha256()
    for path in sorted(package.rglob("*"), key=lambda p: p.relative_to(package).as_posix()):
        if path.suffix in _CODE_SUFFIXES and path.is_file():
            total.update(f"{path.relative_to(package).as_posix()}\0{file_digest(path)}\n".encode())
    return total.hexdigest()
