"""HQQ: its own values from its own files, a slow reading of the definition, and damaged files."""

import math
from collections.abc import Callable

import golden_folders as golden
import pytest
import torch
from golden_folders import Metadata, Tensors

from quantriage.errors import CheckpointError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.numerics.stored_weight import StoredWeight

K = "model.layers.0.self_attn.k_proj"


def test_values_are_hqq_s_own():
    """1, 2, 3, 4 and 8 bits, both axes, groups that straddle rows, bytes stored as floats: difference 0."""
    checkpoint = open_checkpoint(golden.GOLDEN / "hqq_mixed")
    assert checkpoint.kind == "hqq"
    weights, expected = checkpoint.weights, golden.expected("hqq_mixed")
    assert set(weights.names()) == golden.PICO_LLAMA
    assert len(expected) == 7
    for weight, values in expected.items():
        found = weights.get(weight)
        assert found.dtype == values.dtype == torch.float32
        assert weights.shape(weight) == tuple(found.shape)
        assert torch.equal(found, values), weight
    assert weights.stored("model.norm") is None


def test_float16_differs_by_hqq_s_two_roundings():
    """HQQ rounds code - zero to float16, then the product; done so, our parts give its values exactly."""
    weights, tensors = golden.read(golden.GOLDEN / "hqq_half"), golden.tensors_of("hqq_half")
    for weight, values in golden.expected("hqq_half").items():
        module = weight.removesuffix(".weight")
        codes = stored_codes(weights.stored(module)).view(-1, 64).half()
        theirs = (codes - tensors[f"{module}.zero"]) * tensors[f"{module}.scale"]
        assert torch.equal(theirs.view(values.shape), values)
        # 2**-11 for each rounding, and half a step of float16's subnormal numbers
        torch.testing.assert_close(weights.get(weight), values.float(), rtol=2**-10, atol=2**-25)


def stored_codes(stored: StoredWeight | None) -> torch.Tensor:
    assert stored is not None
    assert stored.codes is not None
    return stored.codes


@pytest.mark.parametrize("name", ["hqq_mixed", "hqq_half"])
def test_what_is_stored_gives_the_same_values(name):
    weights, tensors = golden.read(golden.GOLDEN / name), golden.tensors_of(name)
    for weight in golden.expected(name):
        module = weight.removesuffix(".weight")
        stored = weights.stored(module)
        assert stored is not None
        assert stored.scale is not None
        assert stored.offset is not None
        assert stored.scheme is stored.zero_point is None  # the zeros that HQQ fits are no integers
        assert stored.nbytes == golden.stored_bytes(tensors, module)
        assert stored.levels == 1 << int(tensors[f"{module}.nbits"])
        axis = int(tensors[f"{module}.axis"])
        assert stored.layout == f"hqq-axis{axis}"
        groups = (-1, 1) if axis == 1 else (1, -1)
        count = stored.scale.numel()
        codes = stored_codes(stored).view(count, -1) if axis == 1 else stored_codes(stored).view(-1, count)
        values = codes * stored.scale.reshape(groups) + stored.offset.reshape(groups)
        # the offset, zero * scale, is rounded once more
        torch.testing.assert_close(values.view(stored.shape), weights.get(weight), rtol=0, atol=1e-7)


PACKED = {8: "8bit_u8", 6: "8bit_u8", 5: "8bit_u8", 4: "4bit_u8", 3: "3bit_32", 2: "2bit_u8", 1: "1bit_u8"}
FIELDS = {"8bit_u8": [0], "4bit_u8": [4, 0], "2bit_u8": [6, 4, 2, 0], "1bit_u8": list(range(7, -1, -1))}
FIELDS["3bit_32"] = list(range(27, -1, -3))


def pack(codes: torch.Tensor, packing: str) -> torch.Tensor:
    """Code (i, j) of slab k goes into field k of word (i, j)."""
    fields, (rows, columns) = FIELDS[packing], codes.shape
    slab = math.ceil(rows / len(fields))
    words = [[0] * columns for _ in range(slab)]
    for row, line in enumerate(codes.tolist()):
        for column, code in enumerate(line):
            words[row % slab][column] |= code << fields[row // slab]
    return torch.tensor(words, dtype=torch.int32 if packing == "3bit_32" else torch.uint8)


def text(word: str) -> torch.Tensor:
    return torch.tensor(list(word.encode()), dtype=torch.uint8)


def hqq_tensors(
    codes: torch.Tensor,
    bits: float,
    shape: tuple[int, int],
    scale: torch.Tensor,
    zero: torch.Tensor,
    channel_wise: bool = True,
) -> Tensors:
    """The tensors of one weight m: its matrix of groups, one scale and zero to a row, column or weight."""
    axis = 0 if scale.shape[0] == 1 else 1
    packing = PACKED[math.ceil(bits)]
    return {
        "m.W_q": pack(codes, packing),
        "m.scale": scale,
        "m.zero": zero,
        "m.shape": torch.tensor(shape),
        "m.nbits": torch.tensor(bits, dtype=torch.float32 if bits == 1.58 else torch.int32),
        "m.group_size": torch.tensor(codes.shape[axis], dtype=torch.int32),
        "m.axis": torch.tensor(axis, dtype=torch.int32),
        "m.packing": text(packing),
        "m.channel_wise": torch.tensor(channel_wise),
        "m.bias": torch.ones(shape[0]),
    }


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2, 1.58, 1])
def test_every_width_by_definition(tmp_path, bits, axis):
    """Groups of 24 in a weight of 10 x 48, of which each makes a row (axis 1) or a column of a matrix."""
    generator = torch.Generator().manual_seed(5)
    levels = 3 if bits == 1.58 else 1 << bits
    matrix, one = ((20 + 4, 20), (1, 20)) if axis == 0 else ((24, 20), (24, 1))
    codes = torch.randint(0, levels, matrix, generator=generator)
    scale, zero = torch.rand(one, generator=generator), torch.rand(one, generator=generator) * levels
    weights = golden.small("hqq", tmp_path, hqq_tensors(codes, bits, (10, 48), scale, zero))
    assert set(weights.names()) == {"m.weight", "m.bias", "norm.weight"}
    assert torch.equal(weights.get("m.weight"), ((codes - zero) * scale).reshape(10, 48))
    stored = weights.stored("m")
    assert stored is not None
    assert stored.levels == levels
    assert torch.equal(stored_codes(stored), codes.reshape(10, 48).to(torch.uint8))


def test_one_scale_for_the_whole_weight(tmp_path):
    codes = torch.arange(64).view(8, 8) % 16
    scale, zero = torch.tensor([[0.5]]), torch.tensor([[7.25]])
    tensors = hqq_tensors(codes, 4, (8, 8), scale, zero, channel_wise=False)
    weights = golden.small("hqq", tmp_path, tensors)
    assert torch.equal(weights.get("m.weight"), (codes - 7.25) * 0.5)


def test_zeros_that_are_integers_are_zero_points(tmp_path):
    """As HQQ leaves them with round_zero and no optimization; groups within rows make an integer scheme."""
    codes = torch.arange(8 * 32).view(16, 16) % 16
    zero = (torch.arange(16) % 16).view(16, 1).half()
    weights = golden.small("hqq", tmp_path, hqq_tensors(codes, 4, (8, 32), torch.ones(16, 1).half(), zero))
    stored = weights.stored("m")
    assert stored is not None
    assert str(stored.scheme) == "w4a-g16"
    assert stored.zero_point is not None
    assert torch.equal(stored.zero_point, zero.view(8, 2).to(torch.uint8))


def test_hqq_s_own_pickle_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "qmodel.pt").write_bytes(b"\x80\x02.")
    with pytest.raises(CheckpointError, match=r"pickle.*AutoHQQHFModel\.save_to_safetensors"):
        open_checkpoint(tmp_path)


def put(part: str, value: torch.Tensor) -> Callable[[Tensors, Metadata], object]:
    return lambda tensors, metadata: tensors.update({f"{K}.{part}": value})


def drop(part: str) -> Callable[[Tensors, Metadata], object]:
    return lambda tensors, metadata: tensors.pop(f"{K}.{part}")


def number(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int32)


BROKEN = {  # of k_proj: 16 x 64, 3 bits in groups of 32
    "no codes": (drop("W_q"), "without"),
    "no scale": (drop("scale"), "scale: is missing"),
    "no zero": (drop("zero"), "zero: is missing"),
    "no shape": (drop("shape"), "shape: is missing"),
    "no packing": (drop("packing"), "packing: is missing"),
    "no axis": (drop("axis"), "axis: is missing"),
    "no group size": (drop("group_size"), "group_size: is missing"),
    "scale of integers": (put("scale", torch.ones(32, 1).int()), "int32"),
    "few scales": (put("scale", torch.ones(31, 1)), r"\(32, 1\)"),
    "scales of the other axis": (put("zero", torch.ones(1, 32)), r"\(32, 1\)"),
    "few codes": (put("W_q", torch.ones(3, 32).int()), "do not hold"),
    "codes of bytes": (put("W_q", torch.ones(4, 32).byte()), "do not hold"),
    "large shape": (put("shape", torch.tensor([1 << 30, 1 << 30])), "do not hold"),
    "larger shape": (put("shape", torch.tensor([1 << 62, 1 << 62])), "is no shape"),
    "negative shape": (put("shape", torch.tensor([-16, -64])), "is no shape"),
    "shape of one": (put("shape", torch.tensor([64])), r"\(2,\)"),
    "other group size": (put("group_size", number(16)), "do not hold"),
    "group size that does not divide": (put("group_size", number(48)), "does not divide"),
    "huge group size": (put("group_size", torch.tensor(1 << 62)), "does not divide"),
    "no groups": (put("group_size", number(0)), "does not divide"),
    "group size of NaN": (put("group_size", torch.tensor(math.nan)), "float32"),
    "third axis": (put("axis", number(2)), "expected 0 or 1"),
    "other axis": (put("axis", number(0)), r"\(1, 32\)"),
    "seven bits": (put("nbits", number(7)), "one of"),
    "bits of NaN": (put("nbits", torch.tensor(math.nan)), "one of"),
    "bits of another packing": (put("nbits", number(4)), "with nbits 4"),
    "unknown packing": (put("packing", text("4bit_u9")), "4bit_u9"),
    "packing of no letters": (put("packing", torch.full((7,), 255).byte()), "packing"),
    "long packing": (put("packing", torch.ones(1 << 20).byte()), "at most 64"),
    "quantized scales": (put("quant_scale", torch.tensor(1).byte()), "is set"),
    "scales elsewhere": (put("zero_scale", torch.ones(2, 32, 1)), "kept apart"),
    "dense too": (put("weight", torch.ones(16, 64)), "both packed and dense"),
    "per tensor with many scales": (put("channel_wise", torch.tensor(0).byte()), "one scale"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damaged_files_are_refused(case, tmp_path):
    """With one line that names the tensor; a size that lies is refused before anything so large is made."""
    change, message = BROKEN[case]
    folder = golden.damaged("hqq_mixed", tmp_path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        golden.read(folder).get(f"{K}.weight")
    assert K in str(caught.value)
    with pytest.raises(CheckpointError, match=message):
        golden.read(folder).stored(K)
