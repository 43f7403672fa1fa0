"""Digests against hashlib's published vectors; locks compared in words; no torch on the way."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from quantriage.errors import QuantriageError
from quantriage.records.digest import bytes_digest, code_digest, file_digest
from quantriage.records.lock import lock_differences, make_lock
from quantriage.records.types import DataIdentity, Hardware, Lock

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, example 1


def _lock() -> Lock:
    return make_lock(
        command="quantriage recover m",
        model_source="m",
        model_digest="aa",
        data=[
            DataIdentity(role="calibration", source="a.txt", sequences=4, length=8, digest="01"),
            DataIdentity(role="calibration", source="b.txt", sequences=4, length=8, digest="02"),
        ],
        seed=7,
        settings={"bpw": 4.5},
        hardware=Hardware(
            cpu="x", cores=2, memory_bytes=1, device="cpu", compute_dtype="float32", dtype_reason="measured"
        ),
        created=datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC),
    )


def test_digests_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert bytes_digest(b"abc") == file_digest(tmp_path / "f") == ABC
    with pytest.raises(QuantriageError, match="not found"):
        file_digest(tmp_path / "g")


def test_code_digest_is_a_stable_sha256() -> None:
    assert len(code_digest()) == 64
    fresh = subprocess.run(
        [sys.executable, "-c", "from quantriage.records.digest import code_digest; print(code_digest())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert fresh.stdout.strip() == code_digest()


def test_a_lock_knows_its_versions_and_time() -> None:
    lock = _lock()
    assert lock.created == "2030-01-02T03:04:05+00:00"
    assert lock.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert lock.versions["msgspec"] == msgspec.__version__


def test_equal_locks_do_not_differ_and_each_change_is_said() -> None:
    lock = _lock()
    assert lock_differences(lock, lock) == ()
    later = msgspec.structs.replace(
        lock,
        created="later",
        seed=8,
        model_digest="bb",
        settings={"bpw": 5.0, "new": True},
        data=(lock.data[0], msgspec.structs.replace(lock.data[1], digest="03")),
    )
    assert lock_differences(lock, later) == (
        "model digest: was aa, now bb",
        "seed value: was 7, now 8",
        "setting bpw: was 4.5, now 5.0",
        "setting new: was absent, now True",
        "data calibration#2: was 4 x 8 tokens, 02, now 4 x 8 tokens, 03",
    )


def test_records_import_no_torch() -> None:
    code = (
        "import sys, quantriage.records.lock, quantriage.records.ledger, quantriage.records.run_dir;"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
