"""The safetensors container: upstream's writer as oracle, and one test for every lie."""

import gc
import json
import struct
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from quantriage.checkpoint.safetensors_header import DTYPES
from quantriage.checkpoint.safetensors_source import INDEX_NAME, open_safetensors
from quantriage.errors import CheckpointError


def raw_file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str = "F32", shape: object = (2,), begin: object = 0, end: object = 8) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_upstream_files_are_read_bit_for_bit(tmp_path, dtype):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 2, (5, 3 * dtype.itemsize), dtype=torch.uint8, generator=generator)
    tensor = raw.view(dtype)
    path = tmp_path / "model.safetensors"
    save_file({"w": tensor, "first": torch.zeros(3, dtype=torch.uint8), "scalar": tensor[0, 0].clone()}, path)
    source = open_safetensors(path)
    assert sorted(source.names()) == ["first", "scalar", "w"]
    assert source.get("w").dtype == dtype
    assert torch.equal(source.get("w").view(torch.uint8), raw)
    assert source.get("scalar").shape == ()
    meta = source.meta("w")
    assert (meta.shape, getattr(torch, meta.dtype), meta.nbytes) == ((5, 3), dtype, 15 * dtype.itemsize)


def test_unaligned_and_empty_tensors(tmp_path):
    header = {"b": entry("U8", [1], 0, 1), "f": entry("F32", [2], 1, 9), "e": entry("F32", [0, 4], 0, 0)}
    source = open_safetensors(raw_file(tmp_path / "a.safetensors", header, b"\7" + struct.pack("<2f", 1, 2)))
    assert source.get("f").tolist() == [1.0, 2.0]
    assert source.get("e").shape == (0, 4)


def test_writing_into_a_tensor_leaves_the_file_alone(tmp_path):
    save_file({"w": torch.ones(4)}, tmp_path / "model.safetensors")
    source = open_safetensors(tmp_path)
    source.get("w").zero_()
    assert torch.equal(source.get("w"), torch.ones(4))


def test_streaming_stays_at_one_tensor(tmp_path):
    tensors = {f"t{i}": torch.full((1 << 20,), float(i)) for i in range(24)}  # 24 x 4 MB
    save_file(tensors, tmp_path / "model.safetensors")
    del tensors
    gc.collect()
    source = open_safetensors(tmp_path)
    process = psutil.Process()
    before = process.memory_info().rss
    worst = 0
    for i in range(24):
        tensor = source.get(f"t{i}")
        assert float(tensor.sum()) == i * 2**20
        worst = max(worst, process.memory_info().rss - before)
        del tensor
    assert worst < 24 << 20  # of 96 MB: one tensor, and what the allocator keeps


LIES = {
    "header longer than the file": (lambda p: raw_file(p, {}, length=10**6), "header claims"),
    "header of 2**64": (lambda p: raw_file(p, {}, length=2**64 - 1), "header claims"),
    "seven bytes": (lambda p: p.write_bytes(b"1234567"), "truncated"),
    "not json": (lambda p: raw_file(p, b"{nope"), "JSON"),
    "not utf-8": (lambda p: raw_file(p, b'{"\xff": 1}'), "JSON"),
    "a list": (lambda p: raw_file(p, []), "expected a JSON object"),
    "deep": (lambda p: raw_file(p, b"[" * 200_000), "JSON"),
    "huge number": (lambda p: raw_file(p, b'{"a": ' + b"9" * 5000 + b"}"), "JSON"),
    "duplicate": (lambda p: raw_file(p, b'{"a": {}, "a": {}}'), "duplicate"),
    "entry no object": (lambda p: raw_file(p, {"w": 3}), "'w'"),
    "key missing": (lambda p: raw_file(p, {"w": {"dtype": "F32"}}), "'w'"),
    "unknown dtype": (lambda p: raw_file(p, {"w": entry("F33")}, bytes(8)), "unknown dtype"),
    "dtype a list": (lambda p: raw_file(p, {"w": entry(["F32"])}, bytes(8)), "unknown dtype"),
    "negative size": (lambda p: raw_file(p, {"w": entry(shape=[-2])}, bytes(8)), "sizes"),
    "size no integer": (lambda p: raw_file(p, {"w": entry(shape=[2.0])}, bytes(8)), "sizes"),
    "size a boolean": (lambda p: raw_file(p, {"w": entry(shape=[True, 2])}, bytes(8)), "sizes"),
    "huge empty": (lambda p: raw_file(p, {"w": entry(shape=[0, 2**62, 2**62], end=0)}), "too large"),
    "past the end": (lambda p: raw_file(p, {"w": entry()}, bytes(7)), "do not lie in"),
    "backwards": (lambda p: raw_file(p, {"w": entry(begin=8, end=0)}, bytes(8)), "do not lie in"),
    "offset text": (lambda p: raw_file(p, {"w": entry(begin="0")}, bytes(8)), "data_offsets"),
    "wrong size": (lambda p: raw_file(p, {"w": entry(shape=[3])}, bytes(8)), "needs 12 bytes"),
    "overlap": (lambda p: raw_file(p, {"a": entry(), "b": entry(begin=4, end=12)}, bytes(12)), "overlap"),
    "no tensors": (lambda p: raw_file(p, {"__metadata__": {}}), "no tensor"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_header(tmp_path, lie):
    make, message = LIES[lie]
    path = tmp_path / "lie.safetensors"
    make(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_safetensors(path)
    assert str(path) in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 200), value=st.integers(0, 255), cut=st.integers(0, 300))
def test_mutated_files_give_checkpoint_error_or_tensors(tmp_path, at, value, cut):
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2, dtype=torch.int64)}, path)
    content = bytearray(path.read_bytes())
    content[at % len(content)] = value
    path.write_bytes(content[: len(content) - cut] if cut < 30 else content)
    try:
        source = open_safetensors(path)
        for name in source.names():
            source.get(name)
    except CheckpointError:
        pass


def sharded(folder: Path, weight_map: dict[str, object] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"a": torch.ones(2), "b": torch.zeros(3)}, folder / "one.safetensors")
    save_file({"c": torch.arange(4)}, folder / "two.safetensors")
    plain = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map or plain}))
    return folder


def test_shards_are_seen_as_one(tmp_path):
    source = open_safetensors(sharded(tmp_path / "m"))
    assert source.names() == ("a", "b", "c")
    assert source.get("c").tolist() == [0, 1, 2, 3]
    assert source.file_bytes == sum(p.stat().st_size for p in (tmp_path / "m").glob("*.safetensors"))


def test_digest_follows_content_not_place(tmp_path):
    one, two = open_safetensors(sharded(tmp_path / "m")), open_safetensors(sharded(tmp_path / "n"))
    assert one.digest() == two.digest()
    save_file({"c": torch.arange(4) + 1}, tmp_path / "n" / "two.safetensors")
    assert open_safetensors(tmp_path / "n").digest() != one.digest()


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("../secret.safetensors", "outside"),
        ("/etc/passwd", "outside"),
        ("link.safetensors", "outside"),
        ("../m/one.safetensors", "outside"),
        ("missing.safetensors", "missing"),
        ("pytorch_model.bin", "pickle"),
        ("config.json", "not a safetensors file"),
        ("a\0b", "not a name"),
        (7, "file name"),
        ("two.safetensors", "not in this shard"),
    ],
)
def test_bad_index(tmp_path, shard, message):
    save_file({"a": torch.ones(2)}, tmp_path / "secret.safetensors")
    folder = sharded(tmp_path / "m", {"a": shard, "c": "two.safetensors"})
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        open_safetensors(folder)
    assert "'a'" in str(caught.value) or "pickle" in message


def test_truncated_shard_is_named(tmp_path):
    folder = sharded(tmp_path / "m")
    shard = folder / "two.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"two\.safetensors.*'c'.*truncated"):
        open_safetensors(folder)


def test_hub_cache_links_into_its_blobs_are_followed(tmp_path):
    folder = tmp_path / "models--a--b" / "snapshots" / "123"
    folder.mkdir(parents=True)
    sharded(folder)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    (folder / "two.safetensors").rename(blobs / "cafe")
    (folder / "two.safetensors").symlink_to("../../blobs/cafe")
    assert open_safetensors(folder).get("c").shape == (4,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_pickles_are_refused_with_the_way_out(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"pickle.*save_pretrained"):
        open_safetensors(tmp_path)


def test_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no weights"):
        open_safetensors(tmp_path)


def test_several_files_without_index(tmp_path):
    sharded(tmp_path)
    (tmp_path / INDEX_NAME).unlink()
    with pytest.raises(CheckpointError, match="2 safetensors files"):
        open_safetensors(tmp_path)
