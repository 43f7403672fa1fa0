"""bitsandbytes: its own values from its own files, a slow reading of the definition, and damaged files."""

import json
import math
from collections.abc import Callable

import golden_folders as golden
import pytest
import torch
from golden_folders import Metadata, Tensors

from quantriage.errors import CheckpointError
from quantriage.formats.bitsandbytes_4bit import TABLES
from quantriage.formats.checkpoint import open_checkpoint

GOLDENS = ["bnb_int8", "bnb_nf4", "bnb_nf4_double", "bnb_fp4", "bnb_fp4_double"]
Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("name", GOLDENS)
def test_values_are_the_library_s_own(name):
    """Equal once rounded to the dtype that bitsandbytes chose: float32, or the model's 16 bits."""
    checkpoint = open_checkpoint(golden.GOLDEN / name)
    assert checkpoint.kind == "bitsandbytes"
    weights, expected = checkpoint.weights, golden.expected(name)
    assert set(weights.names()) == golden.PICO_LLAMA
    assert len(expected) == 7
    for weight, values in expected.items():
        found = weights.get(weight)
        assert found.dtype == torch.float32
        assert weights.shape(weight) == tuple(found.shape) == tuple(values.shape)
        assert torch.equal(found.to(values.dtype), values), weight
    norm = "model.norm.weight"
    assert torch.equal(weights.get(norm), golden.tensors_of(name)[norm])
    assert weights.stored("model.norm") is None


@pytest.mark.parametrize("name", GOLDENS)
def test_what_is_stored_gives_the_same_values(name):
    weights, tensors = golden.read(golden.GOLDEN / name), golden.tensors_of(name)
    for weight in golden.expected(name):
        module = weight.removesuffix(".weight")
        stored = weights.stored(module)
        assert stored is not None
        assert stored.codes is not None
        assert stored.scale is not None
        assert stored.shape == tuple(stored.codes.shape) == weights.shape(weight)
        assert stored.nbytes == golden.stored_bytes(tensors, module)
        found = weights.get(weight)
        if stored.scheme is not None:
            assert (stored.layout, stored.levels, str(stored.scheme)) == ("int8-rows", 256, "w8s-channel")
            values = (stored.codes.float() - 128) * stored.scale
            torch.testing.assert_close(values, found, rtol=2e-7, atol=0)  # another order of two roundings
        else:
            assert stored.levels == 16
            assert stored.scale_dtype == ("uint8" if "double" in name else "float32")
            assert torch.equal(by_definition(stored.codes, stored.layout, stored.scale, 64), found)


def by_definition(codes: torch.Tensor, table: str, magnitudes: torch.Tensor, size: int) -> torch.Tensor:
    """One weight after the other."""
    values = torch.tensor(TABLES[table])
    flat = [values[c] * magnitudes[i // size] for i, c in enumerate(codes.flatten().tolist())]
    return torch.stack(flat).view(codes.shape)


def four_bit(
    codes: torch.Tensor, magnitudes: torch.Tensor, size: int, table: str = "nf4", **state: object
) -> Tensors:
    """The tensors of one weight m, high half of a byte first."""
    flat = torch.cat([codes.flatten(), torch.zeros(codes.numel() % 2)]).to(torch.uint8)
    text = {"quant_type": table, "blocksize": size, "dtype": "float32", "shape": list(codes.shape)} | state
    return {
        "m.weight": ((flat[::2] << 4) | flat[1::2]).view(-1, 1),
        "m.weight.absmax": magnitudes,
        "m.weight.quant_map": torch.tensor(TABLES[table]),
        f"m.weight.quant_state.bitsandbytes__{table}": octets(json.dumps(text)),
    }


def octets(text: str) -> torch.Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("shape", "size"), [((3, 5), 32), ((7, 21), 64), ((1, 1), 32), ((5, 64), 128)])
def test_blocks_straddle_rows_and_the_last_may_be_short(tmp_path, shape, size, table):
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 16, shape, generator=generator)
    magnitudes = torch.rand(math.ceil(codes.numel() / size), generator=generator)
    weights = golden.small("bitsandbytes", tmp_path, four_bit(codes, magnitudes, size, table))
    assert torch.equal(weights.get("m.weight"), by_definition(codes, table, magnitudes, size))


def test_blocks_of_blocks(tmp_path):
    """More than 256 blocks, so that the magnitudes have two magnitudes of their own."""
    generator = torch.Generator().manual_seed(4)
    codes = torch.randint(0, 16, (100, 90), generator=generator)
    blocks = math.ceil(9000 / 32)
    table = torch.linspace(-1, 1, 256)
    coded = torch.randint(0, 256, (blocks,), generator=generator, dtype=torch.uint8)
    outer = torch.tensor([0.5, 3.0])
    nested = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25}
    tensors = four_bit(codes, coded, 32, **nested)
    tensors |= {"m.weight.nested_absmax": outer, "m.weight.nested_quant_map": table}
    magnitudes = torch.stack([table[c] * outer[i // 256] + 0.25 for i, c in enumerate(coded.tolist())])
    weights = golden.small("bitsandbytes", tmp_path, tensors)
    assert torch.equal(weights.get("m.weight"), by_definition(codes, "nf4", magnitudes, 32))


def in_state(**changes: object) -> Callable[[Tensors, Metadata], object]:
    """Edit the JSON of q_proj; None removes a key."""

    def change(tensors: Tensors, metadata: Metadata) -> None:
        name = next(n for n in tensors if n.startswith(f"{Q}.weight.quant_state"))
        state = json.loads(bytes(tensors[name].tolist())) | changes
        tensors[name] = octets(json.dumps({k: v for k, v in state.items() if v is not None}))

    return change


def put(part: str, value: torch.Tensor) -> Callable[[Tensors, Metadata], object]:
    return lambda tensors, metadata: tensors.update({f"{Q}.{part}": value})


def drop(part: str) -> Callable[[Tensors, Metadata], object]:
    return lambda tensors, metadata: tensors.pop(f"{Q}.{part}")


def drop_all_but_codes(tensors: Tensors, metadata: Metadata) -> None:
    for name in [n for n in tensors if n.startswith(f"{Q}.weight.")]:
        del tensors[name]


STATE = "weight.quant_state.bitsandbytes__nf4"
BROKEN = {
    "no codes": ("bnb_nf4", drop("weight"), "has none"),
    "no state": ("bnb_nf4", drop(STATE), "scales or state are missing"),
    "codes alone": ("bnb_nf4", drop_all_but_codes, "neither SCB nor quant_state"),
    "no magnitudes": ("bnb_nf4", drop("weight.absmax"), "absmax: is missing"),
    "no table": ("bnb_nf4", drop("weight.quant_map"), "quant_map: is missing"),
    "no outer magnitudes": ("bnb_nf4_double", drop("weight.nested_absmax"), "nested_absmax: is missing"),
    "half magnitudes": ("bnb_nf4", put("weight.absmax", torch.ones(64).half()), "float16"),
    "few magnitudes": ("bnb_nf4", put("weight.absmax", torch.ones(63)), r"expected float32 \(64,\)"),
    "many codes": ("bnb_nf4", put("weight", torch.zeros(4096, 1).byte()), "2048 bytes of codes"),
    "other table": ("bnb_nf4", put("weight.quant_map", torch.linspace(-1, 1, 16)), "not the table of nf4"),
    "table of NaN": ("bnb_nf4", put("weight.quant_map", torch.full((16,), math.nan)), "not the table"),
    "short table": ("bnb_nf4_double", put("weight.nested_quant_map", torch.ones(16)), "256"),
    "two states": ("bnb_nf4", put("weight.quant_state.bitsandbytes__fp4", octets("{}")), "keys|two"),
    "unknown type": ("bnb_nf4", put("weight.quant_state.bitsandbytes__af4", octets("{}")), "unknown type"),
    "large shape": ("bnb_nf4", in_state(shape=[1 << 30, 1 << 30]), "bytes of codes"),
    "larger shape": ("bnb_nf4", in_state(shape=[1 << 62, 1 << 62]), r"is not \[out, in\]"),
    "negative shape": ("bnb_nf4", in_state(shape=[-64, -64]), r"is not \[out, in\]"),
    "flat shape": ("bnb_nf4", in_state(shape=[4096]), r"is not \[out, in\]"),
    "shape of text": ("bnb_nf4", in_state(shape="64x64"), r"is not \[out, in\]"),
    "huge block": ("bnb_nf4", in_state(blocksize=1 << 40), "block size"),
    "no block": ("bnb_nf4", in_state(blocksize=0), "block size"),
    "block of a fraction": ("bnb_nf4", in_state(blocksize=64.0), "block size"),
    "smaller block": ("bnb_nf4", in_state(blocksize=32), "absmax"),
    "huge outer block": ("bnb_nf4_double", in_state(nested_blocksize=1 << 40), "block size"),
    "offset NaN": ("bnb_nf4_double", in_state(nested_offset=math.nan), "finite"),
    "offset infinite": ("bnb_nf4_double", in_state(nested_offset=-math.inf), "finite"),
    "offset of text": ("bnb_nf4_double", in_state(nested_offset="0"), "finite"),
    "key missing": ("bnb_nf4_double", in_state(nested_offset=None), "has the keys"),
    "key unknown": ("bnb_nf4", in_state(extra=1), "has the keys"),
    "other type": ("bnb_nf4", in_state(quant_type="fp4"), "says quant_type 'fp4'"),
    "no JSON": ("bnb_nf4", put(STATE, torch.full((80,), 255).byte()), "not valid JSON"),
    "key twice": ("bnb_nf4", put(STATE, octets('{"shape": [1], "shape": [2]}')), "duplicate key"),
    "list": ("bnb_nf4", put(STATE, octets("[]")), "JSON object"),
    "long JSON": ("bnb_nf4", put(STATE, torch.zeros(1 << 20).byte()), "at most 4096"),
    "JSON in floats": ("bnb_nf4", put(STATE, torch.zeros(80)), "expected uint8"),
    "no row magnitudes": ("bnb_int8", drop("SCB"), "SCB"),
    "no int8 codes": ("bnb_int8", drop("weight"), "weight: is missing"),
    "few row magnitudes": ("bnb_int8", put("SCB", torch.ones(63)), r"\(64,\)"),
    "row magnitudes of bytes": ("bnb_int8", put("SCB", torch.ones(64).byte()), "uint8"),
    "unsigned codes": ("bnb_int8", put("weight", torch.ones(64, 64).byte()), "expected int8"),
    "flat codes": ("bnb_int8", put("weight", torch.ones(64).to(torch.int8)), "expected int8"),
    "order of a GPU": ("bnb_int8", put("weight_format", torch.tensor(2).byte()), "one kind of GPU"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damaged_files_are_refused(case, tmp_path):
    """With one line that names the tensor; a size that lies is refused before anything so large is made."""
    name, change, message = BROKEN[case]
    folder = golden.damaged(name, tmp_path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        golden.read(folder).get(f"{Q}.weight")
    assert Q in str(caught.value)
    with pytest.raises(CheckpointError, match=message):
        golden.read(folder).stored(Q)
