"""The writer: upstream's reader as oracle; nothing under the final name unless all of it."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from quantriage.checkpoint.safetensors_source import INDEX_NAME, open_safetensors
from quantriage.checkpoint.shard_writer import ShardWriter
from quantriage.errors import CheckpointError, StorageError


def sample() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "odd": torch.randint(-8, 8, (3,), dtype=torch.int8, generator=generator),
        "half": torch.randn(4, 5, generator=generator).bfloat16(),
        "float": torch.randn(7, 3, generator=generator),
        "long": torch.arange(5),
        "transposed": torch.randn(3, 4, generator=generator).T,
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "flags": torch.tensor([True, False, True]),
    }


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def digests_on_disk(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_one_shard_is_read_by_upstream(tmp_path):
    with ShardWriter(tmp_path / "deep" / "out") as writer:
        for name, tensor in sample().items():
            writer.add(name, tensor)
        writer.add_file("config.json", b"{}")
    folder = tmp_path / "deep" / "out"
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert_same(load_file(folder / "model.safetensors"), sample())
    assert writer.digests == digests_on_disk(folder)
    for path, entry in open_safetensors(folder).entries.values():
        assert entry.begin % entry.dtype.itemsize == 0, path


def test_many_shards_with_index(tmp_path):
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(5)}
    with ShardWriter(tmp_path / "out", max_shard_bytes=1000) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        digests = writer.finish()
    folder = tmp_path / "out"
    assert digests == digests_on_disk(folder)
    index = json.loads((folder / INDEX_NAME).read_text())
    assert index["metadata"]["total_size"] == 2000
    assert sorted(set(index["weight_map"].values())) == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    source = open_safetensors(folder)
    assert_same({name: source.get(name) for name in source.names()}, tensors)


def test_copied_file(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b"{1}")
    with ShardWriter(tmp_path / "out") as writer:
        writer.add("a", torch.ones(1))
        writer.copy_file(tmp_path / "tokenizer.json")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == b"{1}"


def test_memory_is_one_tensor_not_one_shard(tmp_path):
    process = psutil.Process()
    with ShardWriter(tmp_path / "out") as writer:
        before = process.memory_info().rss
        for i in range(24):
            writer.add(f"t{i}", torch.full((1 << 20,), float(i)))
        writer.finish()
        assert process.memory_info().rss - before < 32 << 20  # of 96 MB


class StopError(Exception):
    pass


def fail_after(writer: ShardWriter, count: int) -> None:
    with writer:
        for i in range(count):
            writer.add(f"t{i}", torch.ones(4))
        raise StopError


def test_failure_leaves_nothing(tmp_path):
    with pytest.raises(StopError):
        fail_after(ShardWriter(tmp_path / "out", max_shard_bytes=8), 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("replace", [False, True])
def test_existing_folder(tmp_path, replace):
    old = tmp_path / "out"
    old.mkdir()
    (old / "precious").write_text("x")
    if not replace:
        with pytest.raises(StorageError, match="not empty"), ShardWriter(old):
            pass
        assert (old / "precious").exists()
        return
    with pytest.raises(StopError):
        fail_after(ShardWriter(old, replace=True), 1)
    assert (old / "precious").exists()
    with ShardWriter(old, replace=True) as writer:
        writer.add("a", torch.ones(1))
    assert [p.name for p in old.iterdir()] == ["model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_existing_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with ShardWriter(tmp_path / "out") as writer:
        writer.add("a", torch.ones(1))
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(StorageError, match="no folder"), ShardWriter(tmp_path / "out", replace=True):
        pass


def test_tensor_twice_and_bad_names(tmp_path):
    with ShardWriter(tmp_path / "out") as writer:
        writer.add("a", torch.ones(1))
        with pytest.raises(CheckpointError, match="twice"):
            writer.add("a", torch.ones(1))
        for name in ("../x", "model.safetensors", "a/b"):
            with pytest.raises(CheckpointError, match="not a name"):
                writer.add_file(name, b"")


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from quantriage.checkpoint.shard_writer import ShardWriter
from quantriage.errors import StorageError
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with ShardWriter(Path(sys.argv[1])) as writer:
        writer.add("a", torch.ones(100))
        writer.add("b", torch.ones(5000))
        writer.add_file("config.json", b"x" * 30000)
except StorageError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("limit", [0, 10_000, 20_450, 25_000])  # while spooling, copying, adding a file
def test_full_disk_is_one_clear_error_and_nothing_stays(tmp_path, limit):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "out"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == StorageError.exit_code, done.stderr
    assert "disk is full" in done.stdout
    assert str(tmp_path / "out") in done.stdout
    assert list(tmp_path.iterdir()) == []
