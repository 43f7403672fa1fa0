"""AutoRound's own format: its files read to its own weights, its per-layer settings resolved as it does."""

import pytest
import torch
from word_packed_cases import GOLDEN, check_golden, check_written_again, config_of, opened, random_weight

from quantriage.errors import CheckpointError
from quantriage.formats.autoround import autoround_layouts, with_override
from quantriage.formats.awq import AwqLayout
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.formats.gptq import GptqLayout
from quantriage.formats.word_packed import Layout
from quantriage.numerics.schemes import Scheme

GOLDENS = ["autoround_gptq", "autoround_gptqmodel", "autoround_awq"]
CONFIG = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
    "bits": 4,
    "group_size": 16,
    "sym": False,
    "data_type": "int",
}


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_of_autoround_is_read_to_its_own_weights(name):
    zeros = check_golden(name)
    assert len(zeros) == (3 if name == "autoround_awq" else 6)
    if name != "autoround_gptq":
        assert any(bool((zero == 0).any()) for zero in zeros.values())


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_is_written_again_byte_for_byte(name):
    check_written_again(name)


def test_what_the_record_says():
    weights = open_checkpoint(GOLDEN / "autoround_gptq").weights
    stored = {kind: weights.stored(f"model.layers.0.self_attn.{kind}_proj") for kind in "qkvo"}
    assert [str(stored[kind].scheme) for kind in "qkvo"] == ["w2s-g16", "w3s-g16", "w8s-g32", "w4s-g16"]
    assert stored["q"].layout == "gptq-v1"
    assert weights.stored("model.layers.0.mlp.gate_proj") is None  # 16 bits in extra_config
    awq = open_checkpoint(GOLDEN / "autoround_awq").weights.stored("model.layers.0.mlp.up_proj")
    assert (awq.layout, str(awq.scheme)) == ("awq-gemm", "w4a-g16")


@pytest.mark.parametrize("method", ["auto-round", "intel/auto-round"])
@pytest.mark.parametrize(
    ("packing", "layout"),
    [
        (None, GptqLayout(4, 16, False, False, 1)),
        ("auto", GptqLayout(4, 16, False, False, 1)),
        ("auto_round:gptq", GptqLayout(4, 16, False, False, 1)),
        ("auto_round:auto_gptq", GptqLayout(4, 16, False, False, 1)),
        ("auto_round", GptqLayout(4, 16, False, False, 2)),
        ("auto_round:gptqmodel", GptqLayout(4, 16, False, False, 2)),
        ("auto_round:auto_awq", AwqLayout(16, False)),
        ("auto_round:awq", AwqLayout(16, False)),
    ],
)
def test_packing_formats(tmp_path, method, packing, layout: Layout):
    weight = random_weight(Scheme.parse("w4a-g16"), (64, 96))
    config = {**CONFIG, "quant_method": method, "packing_format": packing}
    if packing is None:
        del config["packing_format"]
    weights = opened(tmp_path, layout.write("m", weight), config)
    assert torch.equal(weights.get("m.weight"), weight.dequantize())


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_of_the_gptq_layout(tmp_path, bits):
    """5, 6 and 7 bits too, which GPTQ itself does not have; AutoRound's are the same stream of bits."""
    scheme = Scheme.parse(f"w{bits}a-g16")
    weight = random_weight(scheme, (64, 96))
    tensors = GptqLayout(bits, 16, False, False, 2).write("m", weight)
    del tensors["m.g_idx"]  # AutoRound writes none
    weights = opened(tmp_path, tensors, {**CONFIG, "bits": bits, "packing_format": "auto_round"})
    assert torch.equal(weights.get("m.weight"), weight.dequantize())
    assert weights.stored("m").scheme == scheme


def test_settings_of_single_modules():
    """A full name wins over patterns; of patterns the first that is found anywhere in the name."""
    extra = {
        r".*layers\.1\..*": {"bits": 2},
        "layers.1.k": {"bits": 3},
        "model.layers.1.q": {"bits": 8, "group_size": -1, "sym": True},
    }
    modules = frozenset(f"model.layers.{i}.{kind}" for i in range(2) for kind in "qk")
    layout_of = autoround_layouts({**CONFIG, "extra_config": extra}, modules, "here")
    assert layout_of("model.layers.1.q") == GptqLayout(8, -1, True, False, 1)
    assert layout_of("model.layers.1.k") == GptqLayout(2, 16, False, False, 1)
    assert layout_of("model.layers.0.q") == GptqLayout(4, 16, False, False, 1)
    changed = with_override({**CONFIG, "extra_config": extra}, "model.layers.1.k", Scheme.parse("w8s-g32"))
    assert autoround_layouts(changed, modules, "here")("model.layers.1.k") == GptqLayout(
        8, 32, True, False, 1
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packing_format": "auto_round:llm_compressor"}, "'auto_round:llm_compressor' is not read"),
        ({"packing_format": 1}, "1 is not read"),
        ({"data_type": "mx_fp"}, "'mx_fp' is not read"),
        ({"data_type": "int_asym_dq"}, "'int_asym_dq' is not read"),
        ({"act_bits": 8}, "quantized activations"),
        ({"bits": 16}, "16 bits are not read"),
        ({"rotation_config": {"type": "hadamard"}}, "rotates the model"),
        ({"extra_config": ["m"]}, "not an object"),
        ({"extra_config": {"m": {"bits": 16}}}, "'m': GPTQ codes of 16 bits"),
        ({"extra_config": {"m": {"data_type": "fp"}}}, "'m': data_type"),
        ({"extra_config": {"(m*)*": {"bits": 8}}}, "repeats a group"),
        ({"packing_format": "auto_round:auto_awq", "bits": 8}, "AWQ codes of 8 bits"),
    ],
)
def test_configs_that_are_not_read_are_named(tmp_path, change, message):
    weight = random_weight(Scheme.parse("w4a-g16"), (64, 96))
    tensors = GptqLayout(4, 16, False, False, 1).write("m", weight)
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, tensors, {**CONFIG, **change}).get("m.weight")


def test_golden_configs_are_the_ones_upstream_wrote():
    packings = [config_of(GOLDEN / name)["packing_format"] for name in GOLDENS]
    assert packings == ["auto_round:auto_gptq", "auto_round:gptqmodel", "auto_round:auto_awq"]
    assert {config_of(GOLDEN / name)["autoround_version"] for name in GOLDENS} == {"0.16.1"}
