"""Folders of older tools: settings beside config.json, or none at all, are read as if they stood in it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from golden_folders import GOLDEN
from safetensors.torch import load_file, save_file

from quantriage.errors import CheckpointError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.formats.rewrite import DENSE
from quantriage.formats.rewriters import rewriter_of

# As AutoGPTQ and AutoAWQ wrote them: no quant_method, AutoAWQ under names of its own.
OLDER = {
    "gptq_v1": ("quantize_config.json", lambda old: {k: v for k, v in old.items() if k != "quant_method"}),
    "awq_gemm": (
        "quant_config.json",
        lambda old: {"zero_point": True, "q_group_size": old["group_size"], "w_bit": 4, "version": "GEMM"},
    ),
    "hqq_half": (None, None),
}


def without_settings(name: str, folder: Path) -> dict[str, object]:
    """A golden whose config.json says nothing; returns what it said."""
    shutil.copytree(GOLDEN / name, folder, ignore=shutil.ignore_patterns("expected*"))
    config = json.loads((folder / "config.json").read_text())
    settings = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    return settings


def older(name: str, folder: Path) -> Path:
    settings = without_settings(name, folder)
    file, form = OLDER[name]
    if file is not None:
        (folder / file).write_text(json.dumps(form(settings)))
    return folder


@pytest.mark.parametrize("name", OLDER)
def test_values_are_those_of_the_tool(name: str, tmp_path: Path) -> None:
    found = open_checkpoint(older(name, tmp_path / "m"))
    told = open_checkpoint(GOLDEN / name)
    assert found.kind == told.kind
    assert found.weights.names() == told.weights.names()
    quantized = [n for n in found.weights.names() if found.weights.stored(n.removesuffix(".weight"))]
    assert len(quantized) >= 6
    for weight in found.weights.names():
        assert torch.equal(found.weights.get(weight), told.weights.get(weight))


@pytest.mark.parametrize("name", ["gptq_v1", "awq_gemm"])
def test_packed_tensors_without_settings_are_refused(name: str, tmp_path: Path) -> None:
    without_settings(name, tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"no quantization_config, yet .*qweight.* packed codes"):
        open_checkpoint(tmp_path / "m")


def test_settings_that_are_no_object_are_refused(tmp_path: Path) -> None:
    without_settings("gptq_v1", tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": "gptq"}))
    with pytest.raises(CheckpointError, match="is str, expected an object"):
        open_checkpoint(tmp_path / "m")


def test_a_dense_folder_beside_such_a_file_stays_dense(tmp_path: Path) -> None:
    older("gptq_v1", tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    dense = {name: t for name, t in load_file(path).items() if name.endswith("norm.weight")}
    save_file(dense, path)
    assert open_checkpoint(tmp_path / "m").kind == "dense"


def test_a_rewriter_amends_the_file_that_says_it(tmp_path: Path) -> None:
    folder = older("gptq_v1", tmp_path / "m")
    rewriter = rewriter_of(open_checkpoint(folder))
    name = "model.layers.0.mlp.down_proj.weight"
    way = next(way for way in rewriter.raised(name, ()) if way.label == DENSE)
    value = open_checkpoint(folder).weights.get(name)
    rewriter.write([rewriter.replace(name, way, value, None)], tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    rules = json.loads((tmp_path / "out" / "quantize_config.json").read_text())["dynamic"]
    assert next(iter(rules)) == r"-:^model\.layers\.0\.mlp\.down_proj$"
    found = open_checkpoint(tmp_path / "out").weights
    assert found.stored(name.removesuffix(".weight")) is None
    assert torch.equal(found.get(name), value.half())


def test_no_larger_way_where_no_file_could_say_so(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    told = tmp_path / "told"
    shutil.copytree(GOLDEN / "hqq_half", told, ignore=shutil.ignore_patterns("expected*"))
    assert rewriter_of(open_checkpoint(told)).raised(name, ())
    assert rewriter_of(open_checkpoint(older("hqq_half", tmp_path / "m"))).raised(name, ()) == ()
