"""The GGUF container: every block type against gguf-py, every lie against CheckpointError."""

import contextlib
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantriage.checkpoint.gguf_file import PLAIN_TYPES, UNREADABLE_TYPES, open_gguf
from quantriage.errors import CheckpointError

BLOCK_TYPES = [k for k in GGMLQuantizationType if k not in PLAIN_TYPES and k not in UNREADABLE_TYPES]


def write_file(path: Path, tensors: dict[str, tuple[np.ndarray, GGMLQuantizationType]]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", ""])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_string("long", "x" * 1000)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_blocks(kind: GGMLQuantizationType, rows: int, blocks: int) -> np.ndarray:
    generator = np.random.default_rng(int(kind))
    return generator.integers(0, 256, (rows, blocks * GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)


def test_readable_types_are_exactly_those_of_gguf_py():
    for kind in GGMLQuantizationType:
        data = np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        if kind in UNREADABLE_TYPES:
            with pytest.raises(NotImplementedError):
                gguf.quants.dequantize(data, kind)
        elif kind not in PLAIN_TYPES:
            gguf.quants.dequantize(data, kind)


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_block_types_equal_gguf_py_bit_for_bit(tmp_path, kind):
    data = random_blocks(kind, 7, 3)
    source = open_gguf(write_file(tmp_path / "f.gguf", {"t": (data, kind)}))
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data, kind)
    found = source.get("t")
    assert found.dtype == torch.float32
    assert source.meta("t").shape == tuple(found.shape) == expected.shape
    np.testing.assert_array_equal(found.numpy().view(np.uint32), expected.view(np.uint32))


def test_large_tensor_is_dequantized_in_chunks_to_the_same_values(tmp_path):
    kind = GGMLQuantizationType.Q8_0
    data = random_blocks(kind, 1500, 32)  # 6 MB as float32: more than one chunk
    source = open_gguf(write_file(tmp_path / "f.gguf", {"t": (data, kind)}))
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data, kind)
    np.testing.assert_array_equal(source.get("t").numpy().view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kind", list(PLAIN_TYPES), ids=lambda kind: kind.name)
def test_plain_types_keep_their_bits(tmp_path, kind):
    dtype = PLAIN_TYPES[kind]
    raw = random_blocks(kind, 4, 6)
    source = open_gguf(write_file(tmp_path / "f.gguf", {"t": (raw, kind), "u": (raw[:1], kind)}))
    found = source.get("t")
    assert found.dtype == dtype
    assert source.meta("t").dtype == str(dtype).removeprefix("torch.")
    np.testing.assert_array_equal(found.view(torch.uint8).numpy(), raw)


def test_expert_stack_keeps_three_dimensions(tmp_path):
    kind = GGMLQuantizationType.Q4_0
    data = random_blocks(kind, 6, 2).reshape(2, 3, -1)
    source = open_gguf(write_file(tmp_path / "f.gguf", {"t": (data, kind)}))
    assert source.get("t").shape == source.meta("t").shape == (2, 3, 64)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "f.gguf"
    kind = GGMLQuantizationType.Q4_1
    plain = np.arange(64, dtype=np.float32)
    blocks = random_blocks(kind, 4, 2)
    write_file(path, {"a": (plain, GGMLQuantizationType.F32), "b": (blocks, kind)})
    return path.read_bytes()


def read_everything(path: Path) -> None:
    source = open_gguf(path)
    for name in source.names():
        source.get(name)


def expect_only_checkpoint_error(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    start = time.monotonic()
    with contextlib.suppress(CheckpointError):
        read_everything(path)
    assert time.monotonic() - start < 5


def test_every_truncation_is_refused(small_file, tmp_path):
    path = tmp_path / "t.gguf"
    for length in range(len(small_file) - gguf.GGUF_DEFAULT_ALIGNMENT):
        path.write_bytes(small_file[:length])
        with pytest.raises(CheckpointError):
            open_gguf(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_headers_give_checkpoint_error_or_a_file(small_file, tmp_path, data):
    content = bytearray(small_file)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 9))
        if data.draw(st.booleans()):
            content[at] = data.draw(st.integers(0, 255))
        else:
            huge = data.draw(st.sampled_from([2**64 - 1, 2**63, 2**62 + 1, 2**32, 2**31, 10**7, 0]))
            content[at : at + 8] = struct.pack("<Q", huge)
    expect_only_checkpoint_error(tmp_path / "m.gguf", bytes(content))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.binary(max_size=300), tensors=st.integers(0, 2**64 - 1), keys=st.integers(0, 2**64 - 1))
def test_random_bytes_after_the_magic(tmp_path, tail, tensors, keys):
    content = b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + tail
    expect_only_checkpoint_error(tmp_path / "r.gguf", content)


def header(keys: list[bytes], tensors: list[bytes], version: int = 3, data: bytes = b"\0" * 256) -> bytes:
    body = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys + tensors)
    return body + b"\0" * (-len(body) % 32) + data


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def info(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def nested(depth: int) -> bytes:
    return b"".join(struct.pack("<IQ", 9, 1) for _ in range(depth)) + struct.pack("<IQ", 4, 0)


GOOD = info("a", (8,), 0, 0)
LIES = {
    "array longer than the file": (header([text("k") + struct.pack("<IIQ", 9, 4, 2**61)], [GOOD]), "claims"),
    "array of strings": (header([text("k") + struct.pack("<IIQ", 9, 8, 2**40)], [GOOD]), "claims"),
    "deep arrays": (header([text("k") + struct.pack("<I", 9) + nested(50)], [GOOD]), "deeper"),
    "unknown value type": (header([text("k") + struct.pack("<I", 99)], [GOOD]), "unknown value type"),
    "duplicate key": (header([text("k") + struct.pack("<II", 4, 1)] * 2, [GOOD]), "twice"),
    "key not utf-8": (header([struct.pack("<Q", 1) + b"\xff" + struct.pack("<II", 4, 1)], [GOOD]), "UTF-8"),
    "alignment": (header([text("general.alignment") + struct.pack("<II", 4, 3)], [GOOD]), "power of two"),
    "alignment 0": (header([text("general.alignment") + struct.pack("<II", 4, 0)], [GOOD]), "power of two"),
    "duplicate tensor": (header([], [GOOD, GOOD]), "twice"),
    "overlap": (header([], [info("a", (16,), 0, 0), info("b", (8,), 0, 32)]), "overlap"),
    "outside": (header([], [info("a", (8,), 0, 2**40)]), "truncated or its header lies"),
    "large shape": (header([], [info("a", (2**40, 2**40), 0, 0)]), "truncated or its header lies"),
    "five dimensions": (header([], [info("a", (1, 1, 1, 1, 1), 0, 0)]), "dimensions"),
    "zero size": (header([], [info("a", (0,), 0, 0)]), "does not divide"),
    "half a block": (header([], [info("a", (16,), 2, 0)]), "does not divide"),
    "unknown type": (header([], [info("a", (8,), 200, 0)]), "unknown ggml type"),
    "retired type": (header([], [info("a", (8,), 4, 0)]), "unknown ggml type"),
    "odd offset": (header([], [info("a", (8,), 0, 7)]), "no multiple"),
    "activation type": (header([], [info("a", (32,), 9, 0)]), "cannot dequantize"),
    "version 1": (header([], [GOOD], version=1), "version 1"),
    "big-endian": (header([], [GOOD], version=3 << 24), "big-endian"),
    "no tensors": (header([], []), "no tensor"),
    "no gguf": (b"PK\x03\x04" + bytes(100), "no GGUF file"),
    "empty": (b"", "truncated"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_header(tmp_path, lie):
    content, message = LIES[lie]
    path = tmp_path / "lie.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_gguf(path)


def test_version_2_is_read(tmp_path):
    path = tmp_path / "v2.gguf"
    path.write_bytes(header([], [GOOD], version=2))
    assert torch.equal(open_gguf(path).get("a"), torch.zeros(8))


def test_unknown_tensor_is_named(tmp_path):
    path = tmp_path / "f.gguf"
    path.write_bytes(header([], [GOOD]))
    with pytest.raises(CheckpointError, match="'nothing'"):
        open_gguf(path).get("nothing")
