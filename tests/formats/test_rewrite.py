"""Checkpoints written again: goldens of upstream tools with one module in another way, the rest untouched."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from golden_folders import GOLDEN
from safetensors.torch import load_file, save_file
from tiny_gguf import write
from tiny_llama import round_to_nearest, save_packed
from torch import Tensor

from quantriage.checkpoint.new_folder import new_folder
from quantriage.checkpoint.same_bytes import differing
from quantriage.checkpoint.shard_rewrite import rewrite_shard
from quantriage.errors import CheckpointError, StorageError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.formats.rewrite import DENSE
from quantriage.formats.rewriters import rewriter_of
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme

DOWN = "model.layers.0.mlp.down_proj"


@dataclass(frozen=True)
class Plain:
    """A Rounding to nearest."""

    importance: Tensor | None = None

    def quantize(self, weight: Tensor, scheme: Scheme, order: Tensor | None) -> QuantizedTensor:
        return round_to_nearest(weight, scheme)


def golden(name: str, folder: Path) -> Path:
    shutil.copytree(GOLDEN / name, folder, ignore=shutil.ignore_patterns("expected*"))
    return folder


def wanted(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.1


OWN = ["ct_int_quantized", "ct_naive_quantized", "ct_pack_g_idx", "gptq_v1", "gptq_v1_channel"]
OWN += ["gptq_v2_desc_act", "awq_gemm", "autoround_gptq", "autoround_awq"]


@pytest.mark.parametrize("name", OWN)
def test_own_way_keeps_config_sizes_and_all_other_bytes(name: str, tmp_path: Path) -> None:
    made = golden(name, tmp_path / "made")
    opened = open_checkpoint(made)
    rewriter = rewriter_of(opened)
    module = next(
        n.removesuffix(".weight")
        for n in opened.weights.names()
        if opened.weights.stored(n.removesuffix(".weight")) and not isinstance(rewriter.own(n), str)
    )
    full = f"{module}.weight"
    way = rewriter.own(full)
    assert not isinstance(way, str)
    replacement = rewriter.replace(full, way, wanted(opened.weights.shape(full)), Plain())
    assert rewriter.write([replacement], tmp_path / "out") == tmp_path / "out"
    after = open_checkpoint(tmp_path / "out")
    assert torch.equal(after.weights.get(full), replacement.value)
    assert float((replacement.value - wanted(replacement.value.shape)).norm()) < 0.6 * 0.1 * 64
    same, changed = differing(made, tmp_path / "out")
    assert changed
    assert all(part.startswith(f"{module}.") for part in changed)
    assert same + len(changed) == len(load_file(made / "model.safetensors"))
    assert (tmp_path / "out" / "config.json").read_bytes() == (made / "config.json").read_bytes()
    assert after.file_bytes == opened.file_bytes


RAISED = ["gptq_v1", "gptq_v2_desc_act", "awq_gemm", "autoround_gptq", "ct_int_quantized", "bnb_nf4"]
RAISED += ["bnb_int8", "fp8_block", "hqq_half", "ct_nvfp4", "ct_float_quantized"]


@pytest.mark.parametrize("name", RAISED)
def test_full_precision_is_said_in_each_config(name: str, tmp_path: Path) -> None:
    opened = open_checkpoint(golden(name, tmp_path / "made"))
    rewriter = rewriter_of(opened)
    module = next(
        n.removesuffix(".weight")
        for n in opened.weights.names()
        if opened.weights.stored(n.removesuffix(".weight"))
    )
    full = f"{module}.weight"
    way = next(way for way in rewriter.raised(full, ()) if way.label == DENSE)
    replacement = rewriter.replace(full, way, wanted(opened.weights.shape(full)), None)
    rewriter.write([replacement], tmp_path / "out")
    after = open_checkpoint(tmp_path / "out")
    assert after.weights.stored(module) is None
    assert torch.equal(after.weights.get(full), replacement.value)
    assert after.weights.get(full).dtype == opened.stored_dtype
    for other in set(opened.weights.names()) - {full}:
        assert torch.equal(after.weights.get(other), opened.weights.get(other))
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert module in json.dumps(settings).replace("\\\\", "")


def test_groups_by_class_name_their_modules_when_one_leaves(tmp_path: Path) -> None:
    save_packed(tmp_path / "made", lambda _: Scheme.parse("w4a-g32"))
    path = tmp_path / "made" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["config_groups"]["group_0"]["targets"] = ["Linear"]
    path.write_text(json.dumps(config))
    opened = open_checkpoint(tmp_path / "made")
    rewriter = rewriter_of(opened)
    full = f"{DOWN}.weight"
    way, dense = rewriter.raised(full, [Scheme.parse("w8s-g32"), Scheme.parse("w4a-g96")])
    assert dense.label == DENSE
    replacement = rewriter.replace(full, way, wanted(opened.weights.shape(full)), Plain())
    rewriter.write([replacement], tmp_path / "out")
    after = open_checkpoint(tmp_path / "out")
    assert str(after.weights.stored(DOWN).scheme) == "w8s-g32"
    assert torch.equal(after.weights.get(full), replacement.value)
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"][
        "config_groups"
    ]
    assert DOWN not in groups["group_0"]["targets"]
    assert len(groups["group_0"]["targets"]) == 13
    assert groups["repaired_0"]["targets"] == [DOWN]


def test_gguf_types(tmp_path: Path) -> None:
    from gguf.constants import GGMLQuantizationType as Kind

    path = write(tmp_path / "a.gguf", "llama", Kind.Q4_0)
    opened = open_checkpoint(path)
    rewriter = rewriter_of(opened)
    name = "model.layers.1.self_attn.q_proj.weight"
    own = rewriter.own(name)
    assert not isinstance(own, str)
    ways = {way.label: way for way in (own, *rewriter.raised(name, ()))}
    assert next(iter(ways)) == "Q4_0"
    assert len(ways) == 5
    for label in ("Q4_0", "Q5_1"):
        replacement = rewriter.replace(name, ways[label], wanted((64, 64)), Plain(torch.rand(64) + 0.1))
        made = rewriter.write([replacement], tmp_path / label)
        after = open_checkpoint(made)
        assert torch.equal(after.weights.get(name), replacement.value)
        assert after.weights.stored(name.removesuffix(".weight")).nbytes == ways[label].nbytes
        assert differing(path, made)[1] == ("blk.1.attn_q.weight",)
    norm = "model.norm.weight"
    plain = rewriter.replace(norm, rewriter.own(norm), wanted((64,)), None)
    assert torch.equal(plain.value, wanted((64,)))


def test_shards_index_and_copies(tmp_path: Path) -> None:
    """Two shards of which one changes; a link into the folder and a hidden one."""
    made = golden("gptq_v1", tmp_path / "made")
    tensors = load_file(made / "model.safetensors")
    (made / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({n: tensors[n] for n in members}, made / shard, metadata={"format": "pt", "x": "y"})
    weight_map = {n: shard for shard, members in shards.items() for n in members}
    index = {"metadata": {"total_size": 1, "more": "kept"}, "weight_map": weight_map}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))
    (made / ".cache").mkdir()
    (made / ".cache" / "left").touch()
    opened = open_checkpoint(made)
    rewriter = rewriter_of(opened)
    full = f"{DOWN}.weight"
    way = next(way for way in rewriter.raised(full, ()) if way.label == DENSE)
    replacement = rewriter.replace(full, way, wanted(opened.weights.shape(full)), None)
    rewriter.write([replacement], tmp_path / "out")
    assert not (tmp_path / "out" / ".cache").exists()
    after = open_checkpoint(tmp_path / "out")
    assert torch.equal(after.weights.get(full), replacement.value)
    written = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    total = sum(t.nbytes for shard in shards for t in load_file(tmp_path / "out" / shard).values())
    assert written["metadata"] == {"total_size": total, "more": "kept"}
    assert full in written["weight_map"]
    outside = tmp_path / "secret"
    outside.touch()
    (made / "link").symlink_to(outside)
    with pytest.raises(CheckpointError, match="leads outside"):
        rewriter.write([replacement], tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_shard_in_place_and_anew(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(4, 3), "b": torch.arange(5, dtype=torch.int16), "c": torch.ones(2).half()}
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, path, metadata={"key": "text"})
    rewrite_shard(path, out, {"b": tensors["b"] + 1})
    old, new = path.read_bytes(), out.read_bytes()
    assert sum(x != y for x, y in zip(old, new, strict=True)) == 5
    out.unlink()
    rewrite_shard(path, out, {"c": torch.ones(7), "d": torch.zeros(0)}, ["a"])
    found = load_file(out)
    assert found.keys() == {"b", "c", "d"}
    assert torch.equal(found["b"], tensors["b"])
    assert torch.equal(found["c"], torch.ones(7))
    with pytest.raises(CheckpointError, match="no tensor 'z'"):
        rewrite_shard(path, tmp_path / "x", {}, ["z"])


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "out") as folder:
        (folder / "whole").touch()
        assert not (tmp_path / "out").exists()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["whole"]
    with pytest.raises(StorageError, match="not empty"), new_folder(tmp_path / "out"):
        pass
