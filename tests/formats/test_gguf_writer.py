"""A rewritten GGUF file: what was replaced is new, and every other byte is as it was."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_gguf
import torch
from gguf.constants import GGMLQuantizationType as Kind

from quantriage.checkpoint.gguf_file import open_gguf
from quantriage.checkpoint.gguf_header import read_gguf_header
from quantriage.errors import CheckpointError, StorageError, UsageError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.formats.gguf import open_gguf_weights
from quantriage.formats.gguf_encode import ENCODERS
from quantriage.formats.gguf_parts import encode_parts
from quantriage.formats.gguf_writer import rewrite_gguf

UP = "blk.0.ffn_up.weight"


@pytest.fixture
def source(tmp_path) -> Path:
    return tiny_gguf.write(tmp_path / "source.gguf", "llama", Kind.Q4_0, head=True)


def raw_of(path: Path, name: str) -> bytes:
    tensor = open_gguf(path).tensors[name]
    return path.read_bytes()[tensor.begin : tensor.begin + tensor.meta.nbytes]


def encoded(path: Path, name: str, kind: str) -> bytes:
    return ENCODERS[kind](open_gguf(path).get(name), None).numpy().tobytes()


def test_nothing_replaced_is_the_same_file(source, tmp_path):
    rewrite_gguf(source, tmp_path / "out.gguf", {})
    assert (tmp_path / "out.gguf").read_bytes() == source.read_bytes()


def test_same_type_changes_the_tensors_bytes_alone(source, tmp_path):
    begin = open_gguf(source).tensors[UP].begin
    new = bytes(reversed(raw_of(source, UP)))
    rewrite_gguf(source, tmp_path / "out.gguf", {UP: ("Q4_0", new)})
    before = source.read_bytes()
    after = before[:begin] + new + before[begin + len(new) :]
    assert (tmp_path / "out.gguf").read_bytes() == after


@pytest.mark.parametrize(
    "names", [[UP], ["token_embd.weight"], ["output.weight"], [UP, "blk.1.attn_q.weight"]]
)
@pytest.mark.parametrize("kind", ["Q8_0", "F32", "F16"])
def test_larger_types(source, tmp_path, names, kind):
    out = tmp_path / "out.gguf"
    replaced = {name: (kind, encoded(source, name, kind)) for name in names}
    rewrite_gguf(source, out, replaced)
    old, new = read_gguf_header(source), read_gguf_header(out)
    assert list(new.tensors) == list(old.tensors)
    assert new.scalars == old.scalars
    assert new.data_start == old.data_start
    for name in old.tensors:
        if name in replaced:
            assert new.tensors[name].kind.name == kind
            assert raw_of(out, name) == replaced[name][1]
        else:
            assert new.tensors[name].meta == old.tensors[name].meta
            assert raw_of(out, name) == raw_of(source, name)
    assert out.stat().st_size % new.alignment == 0
    first = min(tensor.type_at for tensor in old.tensors.values())
    assert out.read_bytes()[:first] == source.read_bytes()[:first]


def test_smaller_type_and_the_reader_of_gguf_py(source, tmp_path):
    large, out = tmp_path / "large.gguf", tmp_path / "out.gguf"
    rewrite_gguf(source, large, {UP: ("F32", encoded(source, UP, "F32"))})
    rewrite_gguf(large, out, {UP: ("Q4_0", raw_of(source, UP))})
    assert out.read_bytes() == source.read_bytes()
    old, new = gguf.GGUFReader(source), gguf.GGUFReader(large)
    for field in old.fields.values():
        parts = zip(field.parts, new.fields[field.name].parts, strict=True)
        assert all(np.array_equal(one, other) for one, other in parts)
    for one, other in zip(old.tensors, new.tensors, strict=True):
        assert one.name == other.name
        if one.name == UP:
            values = gguf.quants.dequantize(one.data, one.tensor_type)
            assert np.array_equal(other.data, values)
        else:
            assert other.tensor_type == one.tensor_type
            assert np.array_equal(other.data, one.data)


def test_alignment_and_order_of_the_source_are_kept(tmp_path):
    """Tensor infos in another order than the data, an alignment of 64 and a file that ends unpadded."""
    keys = struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<II", 4, 64)

    def info(name: bytes, offset: int) -> bytes:
        return struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 32, int(Kind.Q4_0), offset)

    body = b"GGUF" + struct.pack("<IQQ", 3, 2, 1) + keys + info(b"late", 64) + info(b"early", 0)
    body += b"\0" * (-len(body) % 64)
    data = bytes(range(18)) + b"gap?" * 11 + b"xx" + bytes(range(100, 118))
    path, out = tmp_path / "odd.gguf", tmp_path / "out.gguf"
    path.write_bytes(body + data)
    rewrite_gguf(path, out, {})
    assert out.read_bytes() == path.read_bytes()
    rewrite_gguf(path, out, {"early": ("F32", bytes(128))})
    assert raw_of(out, "early") == bytes(128)
    assert raw_of(out, "late") == bytes(range(100, 118))
    assert read_gguf_header(out).tensors["late"].begin == len(body) + 128
    rewrite_gguf(path, out, {"late": ("Q8_0", bytes(34))})
    assert out.stat().st_size == len(body) + 128
    assert raw_of(out, "early") == bytes(range(18))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"nothing": ("Q4_0", b"")}, "no tensor 'nothing'"),
        ({UP: ("Q4_9", b"")}, "no GGUF type"),
        ({UP: ("Q4_0", b"123")}, "takes 3456 bytes as Q4_0, got 3"),
        ({UP: ("Q4_K", b"")}, "multiple of 256"),
    ],
)
def test_what_does_not_fit_is_refused_before_writing(source, tmp_path, entry, message):
    with pytest.raises(CheckpointError, match=message):
        rewrite_gguf(source, tmp_path / "out.gguf", entry)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_refuses_its_own_source_and_a_folder_that_is_not_there(source, tmp_path):
    before = source.read_bytes()
    with pytest.raises(UsageError, match="another name"):
        rewrite_gguf(source, tmp_path / "." / source.name, {})
    with pytest.raises(StorageError):
        rewrite_gguf(source, tmp_path / "nowhere" / "out.gguf", {})
    assert source.read_bytes() == before


def test_failure_while_copying_leaves_no_file(source, tmp_path):
    class Failing(dict):
        """Gives its bytes to the checks and fails when they are to be written."""

        def __getitem__(self, key):
            raise KeyboardInterrupt

    entry = Failing({UP: ("Q4_0", raw_of(source, UP))})
    with pytest.raises(KeyboardInterrupt):
        rewrite_gguf(source, tmp_path / "out.gguf", entry)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_split_files_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a-00001-of-00002.gguf", "llama")
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 2)
    writer.add_tensor("t", np.zeros(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path = tmp_path / "a-00001-of-00002.gguf"
    with pytest.raises(CheckpointError, match="one of 2 files of a split GGUF"):
        rewrite_gguf(path, tmp_path / "out.gguf", {})
    with pytest.raises(CheckpointError, match="one of 2 files of a split GGUF"):
        open_gguf_weights(path)


def test_a_repaired_model_opens_with_the_new_values(source, tmp_path):
    """The whole way: a weight in Hugging Face order, back to the file's, encoded, written and read."""
    weights = open_gguf_weights(source)
    name = "model.layers.1.self_attn.q_proj.weight"
    wanted = torch.randn(weights.shape(name), generator=torch.Generator().manual_seed(0))
    ((part, values),) = encode_parts(weights, name, wanted).items()
    raw = ENCODERS["Q8_0"](values, None).numpy().tobytes()
    rewrite_gguf(source, tmp_path / "out.gguf", {part: ("Q8_0", raw)})
    repaired = open_checkpoint(tmp_path / "out.gguf").weights
    assert float((repaired.get(name) - wanted).abs().max()) < 4 / 127
    for other in weights.names():
        if other != name:
            assert torch.equal(repaired.get(other), weights.get(other))
