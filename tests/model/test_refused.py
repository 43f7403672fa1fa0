"""Checkpoints that cannot be run are refused by the name of what is wrong."""

import json
from pathlib import Path

import pytest
import torch

from quantriage.errors import ArchitectureError, CheckpointError
from small_models import Saved, save


def poison(tensor: torch.Tensor, value: float) -> None:
    tensor.flatten()[3] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("llama", "model.layers.1.mlp.down_proj.weight"),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.2.w3.weight"),
    ],
)
def test_a_weight_that_is_not_finite_is_named(name: str, tensor: str, value: float, tmp_path: Path) -> None:
    saved = save(name, tmp_path)
    saved.edit(lambda tensors: poison(tensors[tensor], value))
    model, _ = saved.open()
    model.load_block(0)
    with pytest.raises(CheckpointError, match=r"1 NaN or infinite") as caught:
        model.load_block(1)
    assert tensor in str(caught.value)


def test_a_final_norm_that_is_not_finite_is_named(tmp_path: Path) -> None:
    saved = save("llama", tmp_path)
    saved.edit(lambda tensors: poison(tensors["model.norm.weight"], float("nan")))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        saved.open()


def test_a_parameter_that_nothing_fills_is_named(tmp_path: Path) -> None:
    saved = save("qwen2", tmp_path)
    saved.edit(lambda tensors: tensors.pop("model.layers.2.self_attn.k_proj.bias"))
    with pytest.raises(CheckpointError, match=r"layers\.2\.self_attn\.k_proj\.bias"):
        saved.open()


def change_config(saved: Saved, **changes: object) -> None:
    path = saved.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_shape_that_is_not_the_configurations_is_named(tmp_path: Path) -> None:
    saved = save("llama", tmp_path)
    change_config(saved, intermediate_size=96)
    with pytest.raises(CheckpointError, match=r"mlp\.\w+_proj\.weight has shape \(\d+, \d+\).*expects"):
        saved.open()


def test_an_unknown_model_type_is_refused(tmp_path: Path) -> None:
    saved = save("llama", tmp_path)
    change_config(saved, model_type="nosuchmodel")
    with pytest.raises(CheckpointError, match="nosuchmodel"):
        saved.open()


def test_a_model_that_is_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    saved = save("llama", tmp_path)
    change_config(saved, model_type="vit")
    with pytest.raises(ArchitectureError, match="'vit'"):
        saved.open()


def test_a_model_without_blocks_is_refused(tmp_path: Path) -> None:
    saved = save("llama", tmp_path, num_hidden_layers=0)
    with pytest.raises(ArchitectureError, match="no list of blocks"):
        saved.open()
