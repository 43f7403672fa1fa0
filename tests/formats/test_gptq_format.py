"""GPTQ: GPTQModel's files read to its own weights and written to its own bytes; hostile files refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from word_packed_cases import (
    GOLDEN,
    check_golden,
    check_written_again,
    config_of,
    opened,
    packed_weights,
    random_weight,
)

from quantriage.errors import CheckpointError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.formats.gptq import GptqLayout, gptq_layouts, with_override
from quantriage.formats.gptq_packing import pack, pack_zeros_v1, unpack, unpack_zeros_v1
from quantriage.formats.word_packed import rewrite
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme

GOLDENS = ["gptq_v1", "gptq_v1_channel", "gptq_v2_desc_act"]
CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": False, "desc_act": True}


def layout(scheme: Scheme, version: int = 1, act_order: bool = True) -> GptqLayout:
    return GptqLayout(4, 16, False, act_order, version).with_scheme(scheme)


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_of_gptqmodel_is_read_to_its_own_weights(name):
    zeros = check_golden(name)
    assert len(zeros) >= 6
    if name != "gptq_v1_channel":  # else the one difference between the versions that is hard goes untested
        assert all(bool((zero == 0).any()) for zero in zeros.values())


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_is_written_again_byte_for_byte(name):
    check_written_again(name)


def test_what_the_record_says():
    weights = open_checkpoint(GOLDEN / "gptq_v1").weights
    stored = {kind: weights.stored(f"model.layers.0.self_attn.{kind}_proj") for kind in "qkvo"}
    assert [str(stored[kind].scheme) for kind in "qkvo"] == ["w2a-g16", "w3a-g16", "w8a-g16", "w4a-g16"]
    assert stored["o"].layout == "gptq-v1"
    assert stored["o"].column_group is None
    assert stored["o"].scale.shape == stored["o"].zero_point.shape == (32, 4)
    assert weights.stored("model.layers.0.mlp.gate_proj") is None  # dynamic left it dense
    assert weights.get("model.layers.0.mlp.gate_proj.weight").dtype == torch.float16
    channel = open_checkpoint(GOLDEN / "gptq_v1_channel").weights.stored("model.layers.0.mlp.down_proj")
    assert str(channel.scheme) == "w4s-channel"
    assert bool((channel.zero_point == 8).all())
    ordered = open_checkpoint(GOLDEN / "gptq_v2_desc_act").weights.stored("model.layers.0.mlp.down_proj")
    assert ordered.scheme is None
    assert ordered.column_group.bincount().tolist() == [16] * 6


def as_number(codes: torch.Tensor, bits: int) -> int:
    """The stream of bits by definition."""
    return sum(code << (i * bits) for i, code in enumerate(codes.tolist()))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [32, 40, 96])
def test_packing_is_one_stream_of_bits(bits, count):
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 1 << bits, (5, count), dtype=torch.uint8, generator=generator)
    if count * bits % 32 and 32 % bits == 0:
        codes = codes[:, : count // (32 // bits) * (32 // bits)]
    words = pack(codes, bits)
    assert words.dtype == torch.int32
    for row, packed in zip(codes, words, strict=True):
        assert as_number(row, bits) == as_number(packed.to(torch.int64) & 0xFFFFFFFF, 32)
    assert torch.equal(unpack(words, bits, codes.shape[1]), codes)


@pytest.mark.parametrize(("bits", "word"), [(2, 0x55555555), (4, 0x11111111), (8, 0x01010101)])
def test_version_1_takes_one_from_the_whole_word(bits, word):
    """GPTQModel subtracts a word of ones, so that a zero point of 0 borrows from the code above it."""
    generator = torch.Generator().manual_seed(bits)
    zeros = torch.randint(0, 1 << bits, (6, 32), dtype=torch.uint8, generator=generator)
    zeros[0] = 0
    stored = pack_zeros_v1(zeros, bits)
    assert torch.equal(stored, (pack(zeros, bits).to(torch.int64) - word).to(torch.int32))
    assert torch.equal(unpack_zeros_v1(stored, bits, 32), zeros)


def test_version_1_of_three_bits_takes_one_from_each_code():
    zeros = torch.arange(8, dtype=torch.uint8).repeat(4).view(1, 32)
    stored = pack_zeros_v1(zeros, 3)
    assert unpack(stored, 3, 8).tolist() == [[7, 0, 1, 2, 3, 4, 5, 6]]
    assert torch.equal(unpack_zeros_v1(stored, 3, 32), zeros)


def test_the_usual_constant_of_symmetric_files():
    """4-bit symmetric files of version 1 store 7 in every place, the 0x77777777 that people see in them."""
    weight = random_weight(Scheme.parse("w4s-g16"), (32, 32))
    assert set(layout(weight.scheme).write("m", weight)["m.qzeros"].flatten().tolist()) == {0x77777777}


SPECS = [
    f"w{bits}{kind}-{where}" for bits in (2, 3, 4, 8) for kind in "sa" for where in ("g16", "g32", "channel")
]


@pytest.mark.parametrize("order", ["runs", "scattered", "given runs"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("spec", SPECS)
def test_read_is_the_inverse_of_write(tmp_path, spec, version, order):
    scheme = Scheme.parse(spec)
    weight = random_weight(scheme, (64, 96))
    width = scheme.group_width(96)
    group = torch.arange(96) // width
    if order == "scattered":
        group = group[torch.randperm(96, generator=torch.Generator().manual_seed(3))]
    tensors = layout(scheme, version).write("a.m", weight, None if order == "runs" else group)
    stored_as = {1: "gptq", 2: "gptq_v2"}[version]
    size = width if "g" in spec else -1
    config = {**CONFIG, "bits": scheme.grid.bits, "group_size": size, "checkpoint_format": stored_as}
    weights = opened(tmp_path, tensors, {**config, "sym": scheme.grid.symmetric})
    found = weights.stored("a.m")
    scattered = order == "scattered" and width < 96
    assert torch.equal(found.codes, weight.codes)
    assert torch.equal(found.scale.half(), weight.scale)
    assert torch.equal(found.zero_point, torch.full_like(found.zero_point, scheme.grid.center)) or (
        torch.equal(found.zero_point, weight.zero_point)
    )
    assert found.scheme == (None if scattered else scheme)
    assert (found.column_group is None) == (not scattered)
    zero = found.zero_point.float()[:, group]
    expected = (weight.codes.float() - zero) * weight.scale.float()[:, group]
    assert torch.equal(weights.get("a.m.weight"), expected)
    assert weights.shape("a.m.weight") == (64, 96)
    if not scattered:
        assert torch.equal(expected, weight.dequantize())


def test_symmetric_config_over_other_zero_points_is_no_symmetric_scheme(tmp_path):
    weight = random_weight(Scheme.parse("w4a-g16"), (32, 32))
    weights = opened(tmp_path, layout(weight.scheme).write("m", weight), {**CONFIG, "sym": True})
    assert not weights.stored("m").scheme.grid.symmetric
    assert torch.equal(weights.get("m.weight"), weight.dequantize())


def test_last_group_may_be_short(tmp_path):
    """GPTQModel rounds the number of groups up."""
    group = torch.arange(40) // 16
    weight = random_weight(Scheme.parse("w4a-g8"), (32, 40), groups=3)
    tensors = {
        "m.qweight": pack(weight.codes, 4).T.contiguous(),
        "m.qzeros": pack_zeros_v1(weight.zero_point.T.contiguous(), 4),
        "m.scales": weight.scale.T.contiguous(),
    }
    weights = opened(tmp_path, tensors, {**CONFIG, "desc_act": False})
    found = weights.stored("m")
    assert found.scheme is None
    assert torch.equal(found.column_group, group)
    expected = (weight.codes.float() - weight.zero_point.float()[:, group]) * weight.scale.float()[:, group]
    assert torch.equal(weights.get("m.weight"), expected)


def drop(part):
    return lambda t: t.pop(f"m.{part}")


def put(part, tensor):
    return lambda t: t.update({f"m.{part}": tensor})


def change_index(place, value):
    return lambda t: t["m.g_idx"].__setitem__(place, value)


BROKEN = {
    "no zeros": (drop("qzeros"), "qzeros is missing"),
    "no scales": (drop("scales"), "scales is missing"),
    "no index": (drop("g_idx"), "g_idx is missing"),
    "no codes": (drop("qweight"), r"m\.qweight is not"),
    "float codes": (put("qweight", torch.ones(12, 64)), "qweight is float32"),
    "flat codes": (put("qweight", torch.ones(12, dtype=torch.int32)), "qweight is int32"),
    "empty codes": (put("qweight", torch.ones(0, 64, dtype=torch.int32)), "qweight is int32"),
    "other width": (put("qweight", torch.ones(9, 64, dtype=torch.int32)), "3 bits each; the config says 4"),
    "more outputs": (put("qweight", torch.ones(12, 72, dtype=torch.int32)), r"scales has shape \(6, 64\)"),
    "int scales": (put("scales", torch.ones(6, 64, dtype=torch.int32)), "scales is int32"),
    "scale shape": (put("scales", torch.ones(3, 64).half()), r"scales has shape \(3, 64\)"),
    "zero dtype": (put("qzeros", torch.ones(6, 8).half()), "qzeros is float16"),
    "zero shape": (put("qzeros", torch.ones(6, 9, dtype=torch.int32)), r"qzeros has shape \(6, 9\)"),
    "index dtype": (put("g_idx", torch.zeros(96)), "g_idx is torch.float32"),
    "index length": (put("g_idx", torch.zeros(97, dtype=torch.int32)), "12 words for 97 inputs"),
    "empty index": (put("g_idx", torch.zeros(0, dtype=torch.int32)), "12 words for 0 inputs"),
    "index below": (change_index(5, -1), "groups -1 to 5; there are 6"),
    "index above": (change_index(95, 6), "groups 0 to 6; there are 6"),
    "dense too": (put("weight", torch.ones(64, 96)), "packed and as a dense weight"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_parts_that_do_not_fit_are_refused(tmp_path, case):
    scheme = Scheme.parse("w4a-g16")
    tensors = layout(scheme).write("m", random_weight(scheme, (64, 96)))
    change, message = BROKEN[case]
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, tensors, CONFIG).get("m.weight")


def test_shape_is_checked_against_the_headers_alone(tmp_path):
    scheme = Scheme.parse("w4a-g16")
    tensors = layout(scheme).write("m", random_weight(scheme, (64, 96)))
    weights = opened(tmp_path, tensors | {"m.scales": torch.ones(6, 72).half()}, CONFIG)
    with pytest.raises(CheckpointError, match="m: scales has shape"):
        weights.shape("m.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 5}, "5 bits are not read"),
        ({"bits": True}, "True bits"),
        ({"bits": "4"}, "'4' bits"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": None}, "group_size is None"),
        ({"group_size": 32}, r"scales has shape \(6, 64\); bits and group size of the config need \(3, 64\)"),
        ({"bits": 8}, "4 bits each; the config says 8"),
        ({"sym": "no"}, "expected true or false"),
        ({"checkpoint_format": "marlin"}, "'marlin' is not read"),
        ({"checkpoint_format": ["gptq"]}, "is not read"),
        ({"checkpoint_format": "gptq_p"}, "'gptq_p' is not read"),
        ({"is_marlin_format": True}, "is not read"),
        ({"pack_dtype": "int16"}, "pack_dtype 'int16'"),
        ({"rotation": "hadamard"}, "rotation"),
        ({"dynamic": [1]}, "dynamic is not an object"),
        ({"dynamic": {"+:m": 4}}, "dynamic is not an object"),
        ({"dynamic": {"+:m": {"bits": 7}}}, "'\\+:m': GPTQ codes of 7 bits"),
        ({"dynamic": {"-:^m$": {}}}, "dynamic says it is not quantized"),
        ({"dynamic": {"+:(a+)+$": {}}}, "repeats a group"),
        ({"dynamic": {"+:((": {}}}, "no regular expression"),
    ],
)
def test_configs_that_are_not_read_are_named(tmp_path, change, message):
    scheme = Scheme.parse("w4a-g16")
    tensors = layout(scheme).write("m", random_weight(scheme, (64, 96)))
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, tensors, {**CONFIG, **change}).get("m.weight")


def test_first_dynamic_rule_wins_and_is_matched_from_the_start():
    rules = {
        "-:model.layers.3.*": {},
        r"+:^model\.layers\.1\.q$": {"bits": 8, "sym": True},
        "model.layers.1": {"bits": 2},
        "+:layers.1": {"bits": 3},
    }
    layout_of = gptq_layouts({**CONFIG, "dynamic": rules}, "here")
    assert layout_of("model.layers.1.q") == GptqLayout(8, 16, True, True, 1)
    assert layout_of("model.layers.1.k").bits == 2
    assert layout_of("model.layers.2.q").bits == 4
    with pytest.raises(CheckpointError, match="not quantized"):
        layout_of("model.layers.3.q")


def test_supports_says_why_not():
    four = layout(Scheme.parse("w4a-g16"))
    assert four.supports(Scheme.parse("w4s-g16"), (64, 96)) is None
    assert "layout of 4 bits" in str(four.supports(Scheme.parse("w3a-g16"), (64, 96)))
    assert "layout of group size 16" in str(four.supports(Scheme.parse("w4a-g32"), (64, 96)))
    assert "in_features 100 of 3 bits" in str(
        layout(Scheme.parse("w3a-channel")).supports(Scheme.parse("w3a-channel"), (64, 100))
    )
    assert "float32 scales" in str(four.supports(Scheme.parse("w4s-g16", "float32"), (64, 96)))
    assert "whole weight" in str(
        layout(Scheme.parse("w4s-tensor")).supports(Scheme.parse("w4s-tensor"), (64, 96))
    )
    assert "not a multiple of group size 16" in str(four.supports(Scheme.parse("w4a-g16"), (64, 104)))
    weight = random_weight(Scheme.parse("w4a-g16"), (64, 96))
    with pytest.raises(CheckpointError, match="without desc_act"):
        layout(weight.scheme, act_order=False).write("m", weight, (torch.arange(96) // 16).flip(0))


@pytest.mark.parametrize("name", GOLDENS)
@pytest.mark.parametrize("spec", ["same", "w8a-g32"])
def test_one_module_is_replaced_in_a_checkpoint_of_others(tmp_path, name, spec):
    """The rest stays as it was; another scheme needs a rule in the config, which with_override writes."""
    module = "model.layers.0.mlp.down_proj"
    old = packed_weights(name)[module]
    same = "w4s-channel" if name == "gptq_v1_channel" else "w4a-g16"
    weight = random_weight(Scheme.parse(same if spec == "same" else spec), old.shape)
    new_layout = old.layout.with_scheme(weight.scheme)
    tensors = load_file(GOLDEN / name / "model.safetensors")
    tensors.update(rewrite(new_layout, module, weight, old.tensors()))
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((GOLDEN / name / "config.json").read_text())
    if spec != "same":
        quantization = with_override(config_of(GOLDEN / name), module, weight.scheme)
        config["quantization_config"] = quantization
    (tmp_path / "config.json").write_text(json.dumps(config))
    before, after = open_checkpoint(GOLDEN / name).weights, open_checkpoint(tmp_path).weights
    assert torch.equal(after.get(f"{module}.weight"), weight.dequantize())
    assert after.stored(module).layout == before.stored(module).layout
    assert set(after.names()) == set(before.names())
    for other in set(before.names()) - {f"{module}.weight"}:
        assert torch.equal(after.get(other), before.get(other))


def test_rewriting_keeps_the_parts_and_dtypes_of_the_checkpoint():
    scheme = Scheme.parse("w4a-g16", "bfloat16")
    weight = random_weight(scheme, (64, 96))
    existing = layout(scheme).write("m", random_weight(Scheme.parse("w4a-g16"), (64, 96)))
    with pytest.raises(CheckpointError, match="choose the new ones in that dtype"):
        rewrite(layout(scheme), "m", tiny_scales(weight), existing)
    written = rewrite(layout(scheme), "m", weight, existing)  # these fit float16 exactly
    assert {name: t.dtype for name, t in written.items()} == {n: t.dtype for n, t in existing.items()}
    del existing["m.g_idx"]
    assert rewrite(layout(scheme), "m", weight, existing).keys() == existing.keys()
    with pytest.raises(CheckpointError, match="stored without g_idx"):
        rewrite(layout(scheme), "m", weight, existing, (torch.arange(96) // 16).flip(0))


def tiny_scales(weight: QuantizedTensor) -> QuantizedTensor:
    """Scales that bfloat16 holds and float16 does not."""
    return QuantizedTensor(weight.scheme, weight.codes, weight.scale * 2.0**-30, weight.zero_point)
