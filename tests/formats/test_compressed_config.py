"""quantization_config: upstream parses it to what we meant, and its own matching finds each module."""

import json

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils.match import match_targets

from quantriage.errors import CheckpointError
from quantriage.formats.compressed_config import config
from quantriage.formats.compressed_groups import read_groups, scheme_for
from quantriage.formats.compressed_parts import StoredScheme
from quantriage.numerics.schemes import IntGrid, PerChannel, PerTensor, Scheme

W4, W8, W3 = Scheme.parse("w4a-g64"), Scheme.parse("w8s-channel"), Scheme.parse("w3a-g32")


def dense_like(layers: int) -> dict[str, Scheme]:
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
    names = [f"model.layers.{i}.{kind}" for i in range(layers) for kind in kinds]
    return {name: (W8 if ".1" in name and "down" in name else W4) for name in names}


def experts(layers: int, count: int) -> dict[str, Scheme]:
    kinds = ("gate_proj", "up_proj", "down_proj")
    names = [
        f"model.layers.{i}.mlp.experts.{e}.{k}" for i in range(layers) for e in range(count) for k in kinds
    ]
    return dict.fromkeys(names, W3) | dense_like(layers)


ABSENT = [
    "model.layers.0.mlp.gate",
    "lm_head",
    "model.layers.10000.mlp.down_proj",
    "xmodel.layers.0.mlp.down_proj",
]


@pytest.mark.parametrize(
    "assignments", [dense_like(3), dense_like(900), experts(2, 12)], ids=["few", "many", "moe"]
)
def test_upstream_finds_each_module_in_its_own_group_only(assignments):
    written = json.loads(json.dumps(config(assignments, ["model.layers.0.mlp.gate"], act_order=True)))
    parsed = QuantizationConfig.model_validate(written)
    targets = [(group.targets, group) for group in parsed.config_groups.values()]
    linear = torch.nn.Linear(1, 1)
    checked = list(assignments)[:: max(1, len(assignments) // 60)]
    for name in [*checked, *ABSENT]:
        matched = [group for names, group in targets if match_targets(name, linear, names)]
        if name not in assignments:
            assert matched == []
            continue
        assert len(matched) == 1
        scheme, args = assignments[name], matched[0].weights
        assert (args.num_bits, args.symmetric) == (scheme.grid.bits, scheme.grid.symmetric)
        assert args.strategy == ("channel" if scheme == W8 else "group")
        assert matched[0].format == "pack-quantized"


def test_many_names_are_folded():
    few = config(dense_like(3), [])["config_groups"]
    many = config(dense_like(900), [])["config_groups"]
    assert all(not t.startswith("re:") for group in few.values() for t in group["targets"])
    assert sum(len(group["targets"]) for group in many.values()) <= 6


def test_lm_head_is_ignored_unless_it_is_assigned():
    assert config({"a.b": W4}, ["c.d"])["ignore"] == ["c.d", "lm_head"]
    assert config({"lm_head": W4}, [])["ignore"] == []


@pytest.mark.parametrize("assignments", [dense_like(3), experts(2, 3)])
def test_schemes_are_read_back(assignments):
    groups = read_groups(json.loads(json.dumps(config(assignments, []))), "here")
    expected = {
        name: StoredScheme("pack-quantized", scheme.grid, scheme.granularity)
        for name, scheme in assignments.items()
    }
    assert {name: scheme_for(name, groups, "here") for name in assignments} == expected


def test_class_target_is_the_last_resort():
    stored = {
        "format": "pack-quantized",
        "config_groups": {
            "a": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": -1}},
            "b": {"targets": ["re:.*down_proj"], "weights": {"num_bits": 8}},
        },
    }
    groups = read_groups(stored, "here")
    down, up = (scheme_for(name, groups, "here") for name in ("x.down_proj", "x.up_proj"))
    assert (down.grid, down.layout) == (IntGrid(8, True), PerTensor())
    assert (up.grid, up.layout) == (IntGrid(4, True), PerChannel())


@pytest.mark.parametrize("stored", [{}, {"config_groups": {}}, {"config_groups": []}])
def test_no_groups(stored):
    with pytest.raises(CheckpointError, match="no config_groups"):
        read_groups(stored, "here")
