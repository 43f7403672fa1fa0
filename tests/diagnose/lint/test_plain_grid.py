"""Plain rounding in block formats and tables against what gguf-py and bitsandbytes store."""

from pathlib import Path

import gguf
import pytest
import torch
from planted import weight
from torch import Tensor

from formats.golden_folders import GOLDEN, expected, read
from quantriage.checkpoint.gguf_file import open_gguf
from quantriage.diagnose.lint.faults import WHOLE, name_cause
from quantriage.diagnose.lint.grouping import groups_of
from quantriage.diagnose.lint.nearest import expected_error
from quantriage.diagnose.lint.pair import Pair, residual_of, sums
from quantriage.diagnose.lint.plain_grid import has_plain_grid, round_plainly
from quantriage.formats.bitsandbytes_4bit import TABLES
from quantriage.formats.gguf_blocks import stored_blocks
from quantriage.formats.gguf_encode import ENCODERS
from quantriage.numerics.stored_weight import StoredWeight

REFERENCE = weight(2, 64, 256)


def in_gguf(kind: str, data: Tensor, folder: Path) -> StoredWeight:
    """What a GGUF file of one tensor stores."""
    writer = gguf.GGUFWriter(folder / "one.gguf", "llama")
    writer.add_tensor("blk.0.w", data.numpy(), raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    stored = stored_blocks(open_gguf(folder / "one.gguf"), "blk.0.w")
    assert stored is not None
    return stored


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_it_is_what_gguf_py_rounds_to_but_for_the_cast_of_scales(kind: str, tmp_path: Path) -> None:
    number = gguf.GGMLQuantizationType[kind]
    data = gguf.quants.quantize(REFERENCE.numpy(), number)
    stored = in_gguf(kind, torch.from_numpy(data), tmp_path)
    theirs = torch.from_numpy(gguf.quants.dequantize(data, number))
    error = residual_of(REFERENCE, theirs)
    assert has_plain_grid(stored)
    if kind != "Q8_0":  # its scale is the largest weight over 127, not over -128
        assert residual_of(theirs, round_plainly(REFERENCE, stored)) < 0.15 * error
    assert expected_error(REFERENCE, stored) == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"])
def test_a_search_does_a_little_better(kind: str, tmp_path: Path) -> None:
    stored = in_gguf(kind, ENCODERS[kind](REFERENCE, None), tmp_path)
    groups = groups_of(stored)
    assert groups is not None
    searched = residual_of(REFERENCE, groups.values(torch.arange(64)))
    assert 0.6 < searched / expected_error(REFERENCE, stored) < 1.1


def test_it_is_what_bitsandbytes_rounds_to() -> None:
    weights = read(GOLDEN / "bnb_nf4")
    values = expected("bnb_nf4")
    for name in weights.names():
        stored = weights.stored(name.removesuffix(".weight")) if name.endswith("proj.weight") else None
        if stored is None:
            continue
        value = values[name].float()
        rounded = round_plainly(value, stored)  # values on the grid stay where they are
        assert residual_of(value, rounded) < 0.005  # their own cast to bfloat16


@pytest.mark.parametrize("name", ["hqq_half", "bnb_nf4", "bnb_nf4_double", "bnb_fp4"])
def test_groups_make_the_values_of_a_golden(name: str) -> None:
    weights = read(GOLDEN / name)
    seen = 0
    for tensor in weights.names():
        stored = weights.stored(tensor.removesuffix(".weight"))
        groups = None if stored is None else groups_of(stored)
        if groups is None or stored is None:
            continue
        seen += 1
        value = groups.values(torch.arange(stored.shape[0]))
        assert torch.allclose(value, weights.get(tensor), rtol=1e-3, atol=1e-5)
    assert seen


def straddling(reference: Tensor, width: int) -> tuple[Tensor, StoredWeight]:
    """NF4 in blocks over the flattened weight."""
    table = torch.tensor(TABLES["nf4"])
    blocks = reference.reshape(-1, width)
    magnitudes = blocks.abs().amax(1)
    codes = (blocks / magnitudes.unsqueeze(1)).unsqueeze(-1).sub(table).abs().argmin(-1).to(torch.uint8)
    rows, columns = reference.shape
    value = (table[codes.to(torch.int64)] * magnitudes.unsqueeze(1)).reshape(rows, columns)
    return value, StoredWeight(
        "nf4", (rows, columns), 16, 1, codes.reshape(rows, columns), magnitudes, "float32", points=table
    )


@pytest.mark.parametrize("columns", [96, 128])
def test_blocks_over_the_ends_of_rows(columns: int) -> None:
    reference = weight(3, 96, columns)
    value, stored = straddling(reference, 64)
    groups = groups_of(stored)
    assert groups is not None
    assert torch.equal(groups.values(torch.arange(96)), value)
    assert torch.equal(round_plainly(reference, stored), value)
    assert expected_error(reference, stored) == pytest.approx(residual_of(reference, value), rel=0.05)


def test_wrong_magnitudes_of_a_table_are_named() -> None:
    reference = weight(3, 96, 128)
    _, stored = straddling(reference, 64)
    assert stored.scale is not None
    for magnitudes, check in ((stored.scale.roll(1), "groups-shifted"), (stored.scale * 2, "scaled")):
        damaged = StoredWeight(
            "nf4", (96, 128), 16, 1, stored.codes, magnitudes, "float32", points=stored.points
        )
        groups = groups_of(damaged)
        assert groups is not None
        value = groups.values(torch.arange(96))
        expected = expected_error(reference, damaged)
        found = name_cause(Pair("m", reference, value, damaged, sums(reference, value), expected), WHOLE)
        assert found is not None
        assert found.check == check
