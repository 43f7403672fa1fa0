"""Checkpoints that compressed-tensors (ct_*) and transformers (fp8_*) wrote: read to their own values.

Upstream multiplies in the dtype of its scales, or rounds to bfloat16; we keep the product in float32. So ours
rounded once to upstream's dtype has to be upstream's, bit for bit.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quantriage.formats.checkpoint import open_checkpoint
from quantriage.numerics.float_grids import E2M1, E4M3
from quantriage.numerics.stored_weight import StoredWeight

HERE = Path(__file__).parent / "golden"
GOLDEN = sorted(path.name for pattern in ("ct_*", "fp8_*") for path in HERE.glob(pattern))
LAYOUTS = {
    "ct_int_quantized": {"int-quantized"},
    "ct_naive_quantized": {"naive-quantized"},
    "ct_float_quantized": {"float-quantized"},
    "ct_float_block": {"float-quantized"},
    "ct_nvfp4": {"nvfp4-pack-quantized"},
    "ct_nvfp4_recent": {"nvfp4-pack-quantized"},
    "ct_mxfp4": {"mxfp4-pack-quantized"},
    "ct_mxfp8": {"mxfp8-quantized"},
    "ct_mixed_precision": {"nvfp4-pack-quantized", "pack-quantized", "float-quantized", "int-quantized"},
    "ct_pack_g_idx": {"pack-quantized"},
    "ct_pack_g_idx_dense": {"pack-quantized"},
    "ct_pack_dense": {"pack-quantized"},
    "fp8_block": {"fp8"},
    "fp8_ue8m0": {"fp8"},
}
BLOCKS = {"ct_float_block": [128, 128], "fp8_block": [16, 16], "fp8_ue8m0": [16, 16]}
PROJECTIONS = [f"self_attn.{one}_proj" for one in "qkvo"] + [
    f"mlp.{one}_proj" for one in ("gate", "up", "down")
]
MODULES = [f"model.layers.0.{name}" for name in PROJECTIONS]
DENSE = {
    "model.embed_tokens.weight",
    "model.norm.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.post_attention_layernorm.weight",
}


def test_the_goldens_are_those_that_are_known():
    assert set(GOLDEN) == set(LAYOUTS)


@pytest.mark.parametrize("name", GOLDEN)
def test_values_are_upstreams(name):
    weights = open_checkpoint(HERE / name).weights
    expected = load_file(HERE / name / "expected.safetensors")
    assert set(expected) == {f"{module}.weight" for module in MODULES}
    for weight, values in expected.items():
        found = weights.get(weight)
        assert found.dtype == torch.float32
        assert weights.shape(weight) == found.shape == values.shape
        assert torch.equal(found.to(values.dtype), values), weight
        assert values.float().std() > 0.01


@pytest.mark.parametrize("name", GOLDEN)
def test_names_are_those_of_the_dense_model(name):
    weights = open_checkpoint(HERE / name).weights
    assert set(weights.names()) == DENSE | {f"{module}.weight" for module in MODULES}
    assert len(set(weights.names())) == len(weights.names())
    assert weights.stored("model.embed_tokens") is None
    tensors = load_file(HERE / name / "model.safetensors")
    assert all(torch.equal(weights.get(dense), tensors[dense]) for dense in DENSE)


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_stored(name):
    weights = open_checkpoint(HERE / name).weights
    tensors = load_file(HERE / name / "model.safetensors")
    found = {module: weights.stored(module) for module in MODULES}
    assert {stored.layout for stored in found.values()} == LAYOUTS[name]
    for module, stored in found.items():
        assert stored.codes.dtype == torch.uint8
        assert stored.codes.shape == stored.shape == weights.shape(f"{module}.weight")
        assert int(stored.codes.max()) < stored.levels
        assert stored.codes.unique().numel() > 3
        assert stored.scale.dtype == torch.float32
        assert stored.zero_point is None or stored.zero_point.shape == stored.scale.shape
        parts = [t for n, t in tensors.items() if n.startswith(f"{module}.weight")]
        assert stored.nbytes == sum(t.numel() * t.itemsize for t in parts)


def places(stored: StoredWeight, block: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column in `scale` of every weight."""
    rows, columns = stored.shape
    down, across = stored.scale.shape
    high, wide = block or (-(-rows // down), -(-columns // across))
    across_of = torch.arange(columns) // wide if stored.column_group is None else stored.column_group
    return torch.arange(rows)[:, None] // high, across_of[None]


@pytest.mark.parametrize("name", GOLDEN)
def test_codes_scales_and_zeros_give_the_values(name):
    """The record alone, by a rule of its own, is the weight: nothing in it is shifted or swapped."""
    weights = open_checkpoint(HERE / name).weights
    tensors = load_file(HERE / name / "model.safetensors")
    for module in MODULES:
        stored = weights.stored(module)
        place = places(stored, BLOCKS.get(name, []))
        plain = tensors.get(f"{module}.weight")
        if "fp4" in stored.layout or (plain is not None and plain.is_floating_point()):
            value = (E2M1 if stored.levels == 16 else E4M3).decode(stored.codes)
        else:
            zero = stored.levels // 2 if stored.zero_point is None else stored.zero_point.float()[place]
            value = stored.codes.float() - zero
        assert torch.equal(value * stored.scale[place], weights.get(f"{module}.weight"))


def test_columns_out_of_order_have_no_scheme_and_all_others_do():
    for name, module, reordered in (
        ("ct_pack_g_idx", MODULES[0], True),
        ("ct_pack_g_idx_dense", MODULES[4], True),
        ("ct_naive_quantized", MODULES[0], True),
        ("ct_pack_dense", MODULES[0], False),
    ):
        stored = open_checkpoint(HERE / name).weights.stored(module)
        assert (stored.column_group is not None) == reordered
        assert (stored.scheme is None) == reordered
        if reordered:
            columns = load_file(HERE / name / "model.safetensors")[f"{module}.weight_g_idx"]
            assert torch.equal(stored.column_group, columns.long())
