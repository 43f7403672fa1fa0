"""Blocks taken apart and put together: gguf-py's and llama.cpp's own dequantization are the oracles."""

from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from safetensors.torch import load_file

from quantriage.checkpoint.gguf_file import PLAIN_TYPES, UNREADABLE_TYPES, open_gguf
from quantriage.formats.gguf import open_gguf_weights
from quantriage.formats.gguf_blocks import block_values, read_fields, stored_blocks, write_fields
from quantriage.formats.gguf_layouts import BLOCK_SCALE_AT, LAYOUTS
from quantriage.formats.gguf_writer import rewrite_gguf
from quantriage.numerics.stored_weight import StoredWeight

GOLDEN = Path(__file__).parent / "golden" / "gguf_llama_cpp"


def blocks(kind: str, count: int) -> np.ndarray:
    """Random blocks whose float16 numbers are finite: their exponents lose the highest bit."""
    layout = LAYOUTS[kind]
    raw = np.random.default_rng(int(Kind[kind])).integers(0, 256, (count, layout.nbytes), dtype=np.uint8)
    if layout.d_type == "float16":
        raw[:, layout.d_at + 1] &= 0xBF
    if layout.dmin_at is not None:
        raw[:, layout.dmin_at + 1] &= 0xBF
    if layout.d_type == "ue4m3":
        raw[:, layout.d_at : layout.d_at + 4] &= 0x7E  # the bytes that E4M3 has without sign and NaN
    return raw


def same_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(found.contiguous().view(torch.int32), expected.contiguous().view(torch.int32))


def values_of(stored: StoredWeight) -> torch.Tensor:
    assert stored.codes is not None
    assert stored.scale is not None
    return block_values(stored.layout, stored.codes, stored.scale, stored.offset)


def test_every_block_type_has_a_record():
    known = {k.name for k in Kind if k not in PLAIN_TYPES and k not in UNREADABLE_TYPES}
    assert set(LAYOUTS) | set(BLOCK_SCALE_AT) == known
    for name, layout in LAYOUTS.items():
        assert GGML_QUANT_SIZES[Kind[name]] == (layout.width, layout.nbytes)
        assert len(layout.points) == layout.levels


@pytest.mark.parametrize("kind", LAYOUTS)
def test_fields_give_the_values_of_gguf_py(kind):
    raw = blocks(kind, 400)
    fields = read_fields(kind, torch.from_numpy(raw))
    found = block_values(kind, fields.codes, fields.scale, fields.offset)
    with np.errstate(over="ignore"):  # the largest powers of two of MXFP4
        assert same_bits(found, torch.from_numpy(dequantize(raw, Kind[kind])))
    assert int(fields.codes.max()) == LAYOUTS[kind].levels - 1


@pytest.mark.parametrize("kind", LAYOUTS)
def test_writing_is_the_inverse_of_reading(kind):
    raw = blocks(kind, 400)
    assert np.array_equal(write_fields(kind, read_fields(kind, torch.from_numpy(raw))).numpy(), raw)


@pytest.mark.parametrize("kind", BLOCK_SCALE_AT)
def test_block_scale_is_where_the_table_says(kind):
    """Without its scale a block has only zeros, and doubling the scale doubles every value."""
    at, _ = BLOCK_SCALE_AT[kind]
    if at is None:
        return
    raw = np.random.default_rng(0).integers(0, 256, (9, GGML_QUANT_SIZES[Kind[kind]][1]), dtype=np.uint8)
    raw[:, at : at + 2] = np.array([0.5], dtype=np.float16).view(np.uint8)
    doubled, none = raw.copy(), raw.copy()
    doubled[:, at : at + 2] = np.array([1.0], dtype=np.float16).view(np.uint8)
    none[:, at : at + 2] = 0
    values = dequantize(raw, Kind[kind])
    assert np.array_equal(dequantize(doubled, Kind[kind]), 2 * values)
    assert values.any()
    assert not dequantize(none, Kind[kind]).any()


def test_golden_of_llama_cpp():
    """Every type that llama.cpp encoded reads to the values that llama.cpp reads."""
    source, expected = open_gguf(GOLDEN / "blocks.gguf"), load_file(GOLDEN / "expected.safetensors")
    assert set(source.names()) == set(LAYOUTS) | set(BLOCK_SCALE_AT)
    for kind in source.names():
        assert same_bits(source.get(kind), expected[kind]), kind
        stored = stored_blocks(source, kind)
        assert stored is not None
        assert (stored.layout, stored.shape) == (kind, (2, 512))
        assert stored.nbytes == source.meta(kind).nbytes
        if kind in LAYOUTS:
            assert same_bits(values_of(stored), expected[kind]), kind
        else:
            assert stored.codes is None
            assert (stored.scale is None) == (kind == "IQ1_M")


@pytest.fixture
def wide(monkeypatch):
    """Models whose matrices have rows of 256, which k-quants need."""
    monkeypatch.setattr(tiny_gguf, "WIDTH", 256)
    monkeypatch.setattr(tiny_gguf, "HIDDEN", 256)
    monkeypatch.setattr(tiny_gguf, "EXPERT_HIDDEN", 256)
    monkeypatch.setattr(tiny_gguf, "LAYERS", 1)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_stored_weight_of_a_model_has_the_rows_of_get(tmp_path, wide, kind):
    path = tiny_gguf.write(tmp_path / "plain.gguf", "llama")
    source = open_gguf(path)
    replaced = {}
    for name in source.names():
        shape = source.meta(name).shape
        if len(shape) == 2:
            replaced[name] = (kind, blocks(kind, shape[0] * shape[1] // LAYOUTS[kind].width).tobytes())
    rewrite_gguf(path, tmp_path / "blocks.gguf", replaced)
    weights = open_gguf_weights(tmp_path / "blocks.gguf")
    for name in weights.names():
        stored = weights.stored(name.removesuffix(".weight"))
        if len(weights.shape(name)) == 1:
            assert stored is None
            continue
        assert stored is not None
        assert stored.shape == weights.shape(name)
        assert stored.levels == LAYOUTS[kind].levels
        assert stored.codes is not None
        assert int(stored.codes.max()) < stored.levels
        assert same_bits(values_of(stored), weights.get(name)), name
        if stored.zero_point is not None:
            assert stored.scale is not None
            assert stored.zero_point.shape == stored.scale.shape
            steps = stored.codes.float() - spread(stored.zero_point, stored).float()
            assert same_bits(steps * spread(stored.scale, stored), weights.get(name))


def spread(groups: torch.Tensor, stored: StoredWeight) -> torch.Tensor:
    """One number for each weight from one for each group of columns."""
    return groups.repeat_interleave(stored.shape[1] // groups.shape[1], dim=1)


def test_transposed_and_stacked_weights(tmp_path):
    weights = open_gguf_weights(tiny_gguf.write(tmp_path / "gpt2.gguf", "gpt2", Kind.Q4_1))
    stored = weights.stored("transformer.h.0.attn.c_attn")
    assert stored is not None
    assert stored.shape == weights.shape("transformer.h.0.attn.c_attn.weight")[::-1]
    assert same_bits(values_of(stored).T, weights.get("transformer.h.0.attn.c_attn.weight"))

    weights = open_gguf_weights(tiny_gguf.write(tmp_path / "moe.gguf", "qwen3moe", Kind.Q5_0))
    name = "model.layers.0.mlp.experts.gate_up_proj"
    stored = weights.stored(name)
    assert stored is not None
    assert same_bits(values_of(stored).reshape(weights.shape(name)), weights.get(name))
    assert stored.nbytes == 2 * weights.source.meta("blk.0.ffn_up_exps.weight").nbytes


def test_parts_of_different_types(tmp_path):
    path = tiny_gguf.write(tmp_path / "moe.gguf", "qwen3moe", Kind.Q5_0)
    up = "blk.0.ffn_up_exps.weight"
    values = open_gguf(path).get(up)
    raw = np.zeros(values.numel() // 32 * 34, dtype=np.uint8)
    rewrite_gguf(path, tmp_path / "mixed.gguf", {up: ("Q8_0", raw.tobytes())})
    stored = open_gguf_weights(tmp_path / "mixed.gguf").stored("model.layers.0.mlp.experts.gate_up_proj")
    assert stored is not None
    assert (stored.layout, stored.levels, stored.codes, stored.scale) == ("Q5_0+Q8_0", 256, None, None)
    assert stored.nbytes == values.numel() // 32 * (22 + 34)


def test_plain_types_are_not_stored_quantized(tmp_path):
    weights = open_gguf_weights(tiny_gguf.write(tmp_path / "a.gguf", "llama", Kind.F16))
    assert all(weights.stored(name.removesuffix(".weight")) is None for name in weights.names())
    assert weights.stored("lm_head") is None
