"""AWQ's GEMM version: GPTQModel's file read to its own weights and written to its own bytes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from word_packed_cases import (
    GOLDEN,
    check_golden,
    check_written_again,
    opened,
    packed_weights,
    random_weight,
)

from quantriage.errors import CheckpointError
from quantriage.formats.awq import AwqLayout
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.formats.gptq_packing import pack_awq, unpack_awq
from quantriage.formats.word_packed import rewrite
from quantriage.numerics.schemes import Scheme

CONFIG = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}


def layout(scheme: Scheme) -> AwqLayout:
    size = 96 if "g" not in str(scheme) else scheme.group_width(96)
    return AwqLayout(-1 if size == 96 else size, scheme.grid.symmetric)


def test_golden_of_gptqmodel_is_read_to_its_own_weights():
    zeros = check_golden("awq_gemm")
    assert len(zeros) == 3
    assert all(bool((zero == 0).any()) for zero in zeros.values())
    stored = open_checkpoint(GOLDEN / "awq_gemm").weights.stored("model.layers.0.mlp.up_proj")
    assert (stored.layout, stored.shape, str(stored.scheme)) == ("awq-gemm", (128, 64), "w4a-g16")


def test_golden_is_written_again_byte_for_byte():
    check_written_again("awq_gemm")


def test_order_of_the_codes_in_a_word():
    """By hand from AWQ's packing order: places hold the codes 0, 2, 4, 6, 1, 3, 5, 7 from the low end."""
    codes = torch.arange(8, dtype=torch.uint8).view(1, 8)
    assert pack_awq(codes).tolist() == [[0x75316420]]
    assert torch.equal(unpack_awq(torch.tensor([[0x75316420]], dtype=torch.int32), 8), codes)


@pytest.mark.parametrize("spec", ["w4s-g16", "w4a-g16", "w4s-g32", "w4a-g32", "w4s-channel", "w4a-channel"])
def test_read_is_the_inverse_of_write(tmp_path, spec):
    scheme = Scheme.parse(spec)
    weight = random_weight(scheme, (40, 96))
    config = {**CONFIG, "group_size": layout(scheme).group_size, "zero_point": not scheme.grid.symmetric}
    weights = opened(tmp_path, layout(scheme).write("a.m", weight), config)
    found = weights.stored("a.m")
    assert found.scheme == scheme
    assert found.column_group is None
    assert torch.equal(found.codes, weight.codes)
    assert torch.equal(found.scale.half(), weight.scale)
    zero = torch.full_like(found.zero_point, 8) if weight.zero_point is None else weight.zero_point
    assert torch.equal(found.zero_point, zero)
    assert weights.shape("a.m.weight") == (40, 96)
    assert torch.equal(weights.get("a.m.weight"), weight.dequantize())


def words(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.int32)


BROKEN = {
    "no zeros": (lambda t: t.pop("m.qzeros"), "qzeros is missing"),
    "no scales": (lambda t: t.pop("m.scales"), "scales is missing"),
    "no codes": (lambda t: t.pop("m.qweight"), r"m\.qweight is not"),
    "float codes": (lambda t: t.update({"m.qweight": torch.ones(96, 8)}), "qweight is float32"),
    "no columns": (lambda t: t.update({"m.qweight": words(0, 8)}), "qweight is int32"),
    "odd columns": (lambda t: t.update({"m.qweight": words(97, 8)}), "97 inputs are no multiple"),
    "more columns": (lambda t: t.update({"m.qweight": words(112, 8)}), r"scales has shape \(6, 64\)"),
    "GPTQ's layout": (lambda t: t.update({"m.qweight": words(12, 64)}), "12 inputs|scales has shape"),
    "scale dtype": (lambda t: t.update({"m.scales": words(6, 64)}), "scales is int32"),
    "zero shape": (lambda t: t.update({"m.qzeros": words(6, 9)}), r"qzeros has shape \(6, 9\)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_parts_that_do_not_fit_are_refused(tmp_path, case):
    scheme = Scheme.parse("w4a-g16")
    tensors = layout(scheme).write("m", random_weight(scheme, (64, 96)))
    change, message = BROKEN[case]
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, tensors, CONFIG).get("m.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "gemv"}, "'gemv' is not read"),
        ({"version": "marlin"}, "'marlin' is not read"),
        ({"version": 3}, "3 is not read"),
        ({"bits": 8}, "8 bits are not read"),
        ({"bits": None}, "None bits"),
        ({"group_size": -2}, "group_size is -2"),
        ({"group_size": 32}, "scales has shape"),
        ({"zero_point": "yes"}, "true or false"),
        ({"dynamic": {"m": {"bits": 8}}}, "for some modules"),
        ({"dynamic": "m"}, "not an object"),
    ],
)
def test_configs_that_are_not_read_are_named(tmp_path, change, message):
    scheme = Scheme.parse("w4a-g16")
    tensors = layout(scheme).write("m", random_weight(scheme, (64, 96)))
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, tensors, {**CONFIG, **change}).get("m.weight")


def test_older_names_of_the_settings(tmp_path):
    scheme = Scheme.parse("w4a-g32")
    weight = random_weight(scheme, (64, 96))
    config = {"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "version": "GEMM", "zero_point": True}
    weights = opened(tmp_path, layout(scheme).write("m", weight), config)
    assert torch.equal(weights.get("m.weight"), weight.dequantize())


def test_supports_says_why_not():
    groups = AwqLayout(16, False)
    assert groups.supports(Scheme.parse("w4s-g16"), (64, 96)) is None
    assert "3 bits" in str(groups.supports(Scheme.parse("w3a-g16"), (64, 96)))
    assert "group size 16" in str(groups.supports(Scheme.parse("w4a-g32"), (64, 96)))
    assert "out_features 60" in str(groups.supports(Scheme.parse("w4a-g16"), (60, 96)))
    assert "not a multiple" in str(groups.supports(Scheme.parse("w4a-g16"), (64, 104)))
    weight = random_weight(Scheme.parse("w4a-g16"), (64, 96))
    with pytest.raises(CheckpointError, match="no index of columns"):
        groups.write("m", weight, (torch.arange(96) // 16).flip(0))


def test_one_module_is_replaced_in_a_checkpoint_of_others(tmp_path):
    module = "model.layers.0.mlp.down_proj"
    old = packed_weights("awq_gemm")[module]
    weight = random_weight(Scheme.parse("w4a-g16"), old.shape)
    tensors = load_file(GOLDEN / "awq_gemm" / "model.safetensors")
    tensors.update(rewrite(old.layout, module, weight, old.tensors()))
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((GOLDEN / "awq_gemm" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    before, after = open_checkpoint(GOLDEN / "awq_gemm").weights, open_checkpoint(tmp_path).weights
    assert torch.equal(after.get(f"{module}.weight"), weight.dequantize())
    for other in set(before.names()) - {f"{module}.weight"}:
        assert torch.equal(after.get(other), before.get(other))
