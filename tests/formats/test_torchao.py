"""torchao: its own values from its own files, examples worked by hand, and damaged files."""

import json
from collections.abc import Callable

import golden_folders as golden
import pytest
import torch
from golden_folders import Metadata, Tensors
from safetensors.torch import save_file

from quantriage.checkpoint.safetensors_source import open_safetensors
from quantriage.errors import CheckpointError
from quantriage.formats.checkpoint import open_checkpoint

LAYER = "model.layers.0"
SCHEMES = {  # what the script that made the goldens asked for; None: float8
    "self_attn.q_proj": "w8s-channel",
    "self_attn.k_proj": "w8s-channel",
    "self_attn.v_proj": "w4s-g32",
    "self_attn.o_proj": None,
    "mlp.gate_proj": "w4a-g32",
    "mlp.up_proj": "w3s-channel",
    "mlp.down_proj": None,
}


@pytest.mark.parametrize("name", ["torchao_bf16", "torchao_fp32"])
def test_values_are_torchao_s_own(name):
    """Equal once rounded to the weight's dtype: int8, int4 and int3 in bytes, float8 e4m3 and e5m2."""
    checkpoint = open_checkpoint(golden.GOLDEN / name)
    assert checkpoint.kind == "torchao"
    weights, expected = checkpoint.weights, golden.expected(name)
    assert set(weights.names()) == golden.PICO_LLAMA
    assert set(expected) == {f"{LAYER}.{module}.weight" for module in SCHEMES}
    for weight, values in expected.items():
        found = weights.get(weight)
        assert found.dtype == torch.float32
        assert weights.shape(weight) == tuple(found.shape)
        assert torch.equal(found.to(values.dtype), values), weight
    assert weights.stored("model.norm") is None


@pytest.mark.parametrize("name", ["torchao_bf16", "torchao_fp32"])
@pytest.mark.parametrize("module", SCHEMES)
def test_what_is_stored_gives_the_same_values(name, module):
    weights, tensors = golden.read(golden.GOLDEN / name), golden.tensors_of(name)
    found, stored = weights.get(f"{LAYER}.{module}.weight"), weights.stored(f"{LAYER}.{module}")
    assert stored is not None
    assert stored.codes is not None
    assert stored.scale is not None
    assert stored.nbytes == golden.stored_bytes(tensors, f"{LAYER}.{module}")
    assert stored.offset is None
    if stored.scheme is None:
        assert SCHEMES[module] is None
        bits = torch.float8_e5m2 if "down" in module else torch.float8_e4m3fn
        assert torch.equal(stored.codes.view(bits).float() * stored.scale, found)
        return
    assert str(stored.scheme) == SCHEMES[module]
    assert stored.levels == stored.scheme.grid.levels > int(stored.codes.max())
    assert (stored.zero_point is None) == stored.scheme.grid.symmetric
    zero = torch.full_like(stored.scale, stored.scheme.grid.center)
    zero = zero if stored.zero_point is None else stored.zero_point.float()
    codes = stored.codes.float().view(*zero.shape, -1)
    assert torch.equal(((codes - zero[:, :, None]) * stored.scale[:, :, None]).view(found.shape), found)


def entry(kind: str, parts: list[str], **attributes: object) -> Metadata:
    """The header texts of one weight m."""
    text = {"_type": kind, "_data": attributes, "_tensor_data_names": parts}
    return {"m.weight": json.dumps(text), "tensor_names": json.dumps(["m.weight"]), "format": "pt"}


def test_int4_by_hand(tmp_path):
    """torchao packs four bits with a GPU library only, so this example is worked from its definition.

    Two rows of four, groups of two: the even column in the low half of a byte, two's complement, scale and
    center stored [groups, out].
    """
    tensors = {
        "m._weight_qdata": torch.tensor([[0x7F, 0x80], [0x21, 0xFE]], dtype=torch.uint8).view(torch.int8),
        "m._weight_scale": torch.tensor([[0.5, 2.0], [1.0, 4.0]]).bfloat16(),
        "m._weight_zero_point": torch.tensor([[0.25, 0.0], [-1.0, 10.0]]).bfloat16(),
    }
    header = entry("Int4Tensor", ["qdata", "scale", "zero_point"], block_size=[1, 2], shape=[2, 4])
    weights = golden.small("torchao", tmp_path, tensors, header)
    # 0x7F: -1, 7; 0x80: 0, -8; 0x21: 1, 2; 0xFE: -2, -1
    expected = [[-1 * 0.5 + 0.25, 7 * 0.5 + 0.25, 0 - 1.0, -8 - 1.0], [2.0, 4.0, -8.0 + 10, -4.0 + 10]]
    assert torch.equal(weights.get("m.weight"), torch.tensor(expected))
    stored = weights.stored("m")
    assert stored is not None
    assert stored.codes is not None
    assert stored.scale is not None
    assert stored.offset is not None
    assert stored.codes.tolist() == [[7, 15, 8, 0], [9, 10, 6, 7]]
    values = stored.codes.float().view(2, 2, 2) * stored.scale[:, :, None] + stored.offset[:, :, None]
    assert torch.equal(values.view(2, 4), torch.tensor(expected))
    assert stored.nbytes == 4 + 8 + 8


@pytest.mark.parametrize("scale", [(), (1, 1), (4, 1), (2, 3), (4, 6)])
def test_float8_takes_its_blocks_from_the_scale(tmp_path, scale):
    """Per tensor, row, block and element, as torchao spreads a scale; the metadata may lack the block."""
    generator = torch.Generator().manual_seed(6)
    numbers = torch.randn(4, 6, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(scale, generator=generator)
    header = entry("Float8Tensor", ["qdata", "scale"])
    weights = golden.small(
        "torchao", tmp_path, {"m._weight_qdata": numbers, "m._weight_scale": scales}, header
    )
    grid = scales.reshape(scale or (1, 1))
    spread = grid.repeat_interleave(4 // grid.shape[0], 0).repeat_interleave(6 // grid.shape[1], 1)
    assert torch.equal(weights.get("m.weight"), numbers.float() * spread)


@pytest.mark.parametrize(("block", "scheme"), [([4, 6], "w8a-tensor"), ([2, 3], None), ([1, 3], "w8a-g3")])
def test_int8_in_any_block(tmp_path, block, scheme):
    """A scale for each block of rows and columns, zero points counted from the middle of int8."""
    generator = torch.Generator().manual_seed(7)
    grid = (4 // block[0], 6 // block[1])
    tensors = {
        "m._weight_qdata": torch.randint(-128, 128, (4, 6), generator=generator).to(torch.int8),
        "m._weight_scale": torch.rand(grid, generator=generator),
        "m._weight_zero_point": torch.randint(-128, 128, grid, generator=generator).to(torch.int8),
    }
    header = entry("Int8Tensor", ["zero_point", "qdata", "scale"], block_size=block)
    weights = golden.small("torchao", tmp_path, tensors, header)
    q, s, z = (tensors[f"m._weight_{part}"].float().tolist() for part in ("qdata", "scale", "zero_point"))
    expected = torch.empty(4, 6)
    for row in range(4):
        for column in range(6):
            at = row // block[0], column // block[1]
            expected[row, column] = torch.tensor(q[row][column] - z[at[0]][at[1]]) * s[at[0]][at[1]]
    assert torch.equal(weights.get("m.weight"), expected)
    stored = weights.stored("m")
    assert stored is not None
    assert (None if stored.scheme is None else str(stored.scheme)) == scheme


def test_files_that_contradict_each_other(tmp_path):
    """Two shards with different texts under one name: neither is believed."""
    for shard, text in (("a", "1"), ("b", "2")):
        save_file({shard: torch.ones(2)}, tmp_path / f"{shard}.safetensors", metadata={"m.weight": text})
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"'m\.weight' differs"):
        open_safetensors(tmp_path).metadata()


def test_metadata_of_numbers_is_refused(tmp_path):
    header = json.dumps(
        {"__metadata__": {"a": 1}, "t": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}
    )
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(CheckpointError, match="not an object of texts"):
        open_safetensors(tmp_path / "m.safetensors").metadata()


Q, V, FLOAT8, G = (
    f"{LAYER}.{m}" for m in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj")
)


def put(name: str, value: torch.Tensor) -> Callable[[Tensors, Metadata], object]:
    return lambda tensors, metadata: tensors.update({name: value})


def drop(name: str) -> Callable[[Tensors, Metadata], object]:
    return lambda tensors, metadata: tensors.pop(name)


def text(module: str, value: str) -> Callable[[Tensors, Metadata], object]:
    return lambda tensors, metadata: metadata.update({f"{module}.weight": value})


def edit(module: str, **changes: object) -> Callable[[Tensors, Metadata], object]:
    """Change the JSON of one weight: its type, its parts, or else an attribute."""

    def change(tensors: Tensors, metadata: Metadata) -> None:
        found = json.loads(metadata[f"{module}.weight"])
        for key, value in changes.items():
            (found if key.startswith("_") else found["_data"])[key] = value
        metadata[f"{module}.weight"] = json.dumps(found)

    return change


BROKEN = {
    "no metadata": (Q, lambda tensors, metadata: metadata.clear(), "no tensor_names"),
    "no entry": (Q, lambda tensors, metadata: metadata.pop(f"{Q}.weight"), "is no part of"),
    "unknown class": (Q, edit(Q, _type="os.system"), "torchao's os.system is not read"),
    "class of a kernel": (
        Q,
        edit(Q, _type="Int4TilePackedTo4dTensor"),
        "Int4TilePackedTo4dTensor is not read",
    ),
    "class is no text": (Q, edit(Q, _type=["Int8Tensor"]), "expected _type"),
    "no JSON": (Q, text(Q, "{"), "not valid JSON"),
    "no object": (Q, text(Q, "[]"), "expected a JSON object"),
    "key twice": (Q, text(Q, '{"_type": "Tensor", "_type": "Int8Tensor"}'), "duplicate key"),
    "long JSON": (Q, text(Q, " " * 200_000 + "{}"), "at most 100000"),
    "parts are no texts": (Q, edit(Q, _tensor_data_names=[1, 2]), "not texts"),
    "parts without codes": (Q, edit(Q, _tensor_data_names=["scale"]), "are expected"),
    "part twice": (Q, edit(Q, _tensor_data_names=["qdata", "qdata", "scale", "zero_point"]), "are expected"),
    "part unlisted": (Q, edit(Q, _tensor_data_names=["qdata", "scale"]), "is no part of"),
    "scaled activations": (
        Q,
        edit(Q, _tensor_data_names=["qdata", "scale", "act_pre_scale"]),
        "act_pre_scale",
    ),
    "no codes": (Q, drop(f"{Q}._weight_qdata"), "_weight_qdata"),
    "no scale": (Q, drop(f"{Q}._weight_scale"), "_weight_scale"),
    "no zero point": (V, drop(f"{V}._weight_zero_point"), "_weight_zero_point"),
    "dense too": (Q, put(f"{Q}.weight", torch.ones(64, 64)), "both whole and in parts"),
    "codes of floats": (Q, put(f"{Q}._weight_qdata", torch.ones(64, 64)), "expected int8"),
    "flat codes": (Q, put(f"{Q}._weight_qdata", torch.ones(64).to(torch.int8)), r"expected \[out, in\]"),
    "few scales": (Q, put(f"{Q}._weight_scale", torch.ones(63, 1)), "64 x 1 blocks"),
    "scales of integers": (Q, put(f"{Q}._weight_scale", torch.ones(64, 1).int()), "int32"),
    "wide zero points": (V, put(f"{V}._weight_zero_point", torch.ones(16, 2).int()), "int32"),
    "few zero points": (V, put(f"{V}._weight_zero_point", torch.ones(16, 1)), "16 x 2 blocks"),
    "huge block": (Q, edit(Q, block_size=[1, 1 << 40]), "two positive sizes"),
    "large block": (Q, edit(Q, block_size=[1, 1 << 30]), "do not divide"),
    "no block": (Q, edit(Q, block_size=[1, 0]), "two positive sizes"),
    "block of NaN": (Q, edit(Q, block_size=[1, float("nan")]), "two positive sizes"),
    "block missing": (Q, edit(Q, block_size=None), "two positive sizes"),
    "block that does not divide": (Q, edit(Q, block_size=[1, 48]), "do not divide"),
    "smaller block": (Q, edit(Q, block_size=[1, 32]), "64 x 2 blocks"),
    "unknown width": (V, edit(V, target_dtype={"_type": "torch.dtype", "_data": "int9"}), "int9"),
    "width is no dtype": (V, edit(V, target_dtype="int4"), "without a dtype"),
    "float8 of integers": (
        FLOAT8,
        put(f"{FLOAT8}._weight_qdata", torch.ones(64, 64).to(torch.int8)),
        "float8",
    ),
    "float8 scales that do not divide": (
        FLOAT8,
        put(f"{FLOAT8}._weight_scale", torch.ones(48, 1)),
        "do not divide",
    ),
    "packed shape lies": (
        G,
        edit(G, _type="Int4Tensor", shape=[1 << 30, 1 << 30]),
        r"expected int8 or uint8 \(1073741824, 536870912\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damaged_files_are_refused(case, tmp_path):
    """With one line; a size that lies is refused before anything so large is made."""
    module, change, message = BROKEN[case]
    folder = golden.damaged("torchao_bf16", tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        golden.read(folder).get(f"{module}.weight")
    with pytest.raises(CheckpointError, match=message):
        golden.read(folder).stored(module)


def test_codes_beyond_their_width(tmp_path):
    """torchao would multiply them out, so `get` does; they have no place among the code points."""
    folder = golden.damaged("torchao_fp32", tmp_path, lambda t, _: t[f"{V}._weight_qdata"].fill_(8))
    weights = golden.read(folder)
    assert bool(weights.get(f"{V}.weight").any())
    with pytest.raises(CheckpointError, match="codes beyond 4 bits"):
        weights.stored(V)
