"""Damage in each format is repaired on the saved file, with every other byte as it was."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from gguf.constants import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file
from tiny_run import Place
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from formats.tiny_gguf import text, write
from quantriage.checkpoint.gguf_file import open_gguf
from quantriage.cli.app import application
from quantriage.diagnose.fisher import nearest
from quantriage.errors import DataError, StorageError, UsageError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.formats.gguf_writer import rewrite_gguf
from quantriage.formats.gptq import GptqLayout
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme
from quantriage.records.diagnosis import Repair
from quantriage.records.run_dir import (
    ATTRIBUTION,
    CANDIDATE,
    LOCK,
    REPAIR,
    REPAIR_LOCK,
    REPAIR_SUMMARY,
    REPORT,
    SUMMARY,
    RunDir,
)
from quantriage.records.types import Lock, RunSummary
from quantriage.stream.compute import exact
from quantriage.workflows.diagnose import diagnose
from quantriage.workflows.export import export
from quantriage.workflows.meter import Meter
from quantriage.workflows.opened import open_model
from quantriage.workflows.options import DiagnoseOptions, RepairOptions
from quantriage.workflows.repair import repair

Damage = dict[str, Callable[[QuantizedTensor], QuantizedTensor]]
OWN = "w4a-g32"
DOWN = "model.layers.1.mlp.down_proj"
NORM = "model.layers.0.input_layernorm"


def zeroed(weight: QuantizedTensor) -> QuantizedTensor:
    """The scales of every third group lost."""
    scale = weight.scale.clone()
    scale.view(-1)[::3] = 0
    return replace(weight, scale=scale)


def options(place: Place, made: Path, out: Path, **changes: object) -> RepairOptions:
    given = {"reference": str(place.model), "candidate": str(made), "out": out}
    texts = {"calibration": (place.calibration,), "text": (place.held_out,)}
    sizes = {"sequences": 16, "length": 32, "evaluation_sequences": 8, "evaluation_length": 32}
    return RepairOptions(**given | texts | sizes | changes)  # type: ignore[arg-type]


def packed(place: Place, folder: Path, damage: Damage, down: str = OWN) -> Path:
    """Plain 4-bit rounding as compressed-tensors, one site in a scheme of its own, some sites damaged."""
    opened = open_model(str(place.model))
    weights = opened.checkpoint.weights

    def quantized(name: str) -> QuantizedTensor:
        found = nearest(weights.get(f"{name}.weight").float(), schemes[name])
        return damage[name](found) if name in damage else found

    schemes = {site.name: Scheme.parse(down if site.name == DOWN else OWN) for site in opened.map.sites}
    export(opened.model, opened.map, schemes, quantized, folder)
    return folder


def test_damaged_weight_comes_back_in_its_own_scheme(place: Place, tmp_path: Path) -> None:
    made = packed(place, tmp_path / "made", {DOWN: zeroed})
    healthy = packed(place, tmp_path / "healthy", {})
    found = repair(options(place, made, tmp_path / "out", extra_bpw=0.0))
    assert [(u.unit, u.before, u.after, u.bytes_added) for u in found.units] == [(DOWN, OWN, OWN, 0)]
    assert found.proven
    assert found.kl_after.value < 1.1 * scored(place, healthy) < 0.7 * found.kl_before.value
    check_others(made, tmp_path / "out", DOWN)
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (made / name).read_bytes()
    run = RunDir(tmp_path / "out.run")
    assert run.read(REPAIR, Repair) == found
    assert all(run.has(name) for name in (ATTRIBUTION, LOCK, REPORT))
    check_loaded(tmp_path / "out")


def test_a_diagnosis_keeps_its_lock_and_summary(place: Place, tmp_path: Path) -> None:
    made = packed(place, tmp_path / "made", {DOWN: zeroed})
    run = RunDir(tmp_path / "run")
    sizes = {"sequences": 4, "length": 32, "budget": 5.0, "run": run.path}
    diagnose(
        DiagnoseOptions(reference=str(place.model), candidate=str(made), text=(place.held_out,), **sizes)
    )
    names = (LOCK, SUMMARY, ATTRIBUTION, CANDIDATE)
    before = [run.file(name).read_bytes() for name in names]
    found = repair(options(place, made, tmp_path / "out", extra_bpw=0.0, run=run.path))
    assert [unit.unit for unit in found.units] == [DOWN]
    assert [run.file(name).read_bytes() for name in names] == before
    assert run.read(REPAIR, Repair) == found
    lock = run.read(REPAIR_LOCK, Lock)
    assert lock.command == "repair"
    assert set(lock.output_files) == {path.name for path in (tmp_path / "out").iterdir()}
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert lock.output_files["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert run.read(REPAIR_SUMMARY, RunSummary).stages
    page = run.file(REPORT).read_text()
    assert all(f'id="{section}"' in page for section in ("candidate", "repair"))
    healthy = packed(place, tmp_path / "healthy", {})
    with pytest.raises(UsageError, match="attribution of another candidate"):
        repair(options(place, healthy, tmp_path / "other", run=run.path))


def check_loaded(folder: Path) -> None:
    """transformers computes with the weight that our reader sees; it unpacks weights when first run."""
    whole = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert bool(whole(torch.arange(8).unsqueeze(0)).logits.isfinite().all())
        inputs = torch.eye(128, dtype=whole.dtype)
        output = whole.get_submodule(DOWN)(inputs).T.float()
    expected = open_checkpoint(folder).weights.get(f"{DOWN}.weight").float()
    assert torch.allclose(output, expected, atol=1e-3)


def scored(place: Place, folder: Path) -> float:
    """KL of a checkpoint on the text that `options` proves with."""
    reference, other = open_model(str(place.model)), open_model(str(folder))
    tokens = reference.tokens((place.held_out,), 8, 32, "evaluation")
    scratch = folder.with_name("scratch")
    meter = Meter(reference.model, reference.map, tokens, exact(), scratch, scratch, 1 << 30)
    return float(meter.model_scores(other.model, other.map).kl.double().mean())


def check_others(before: Path, after: Path, module: str) -> None:
    """Tensors of the module changed, and every other one has its old bytes."""
    old = load_file(before / "model.safetensors")
    new = load_file(after / "model.safetensors")
    assert old.keys() == new.keys()
    changed = {name for name in old if digest(old[name]) != digest(new[name])}
    assert changed
    assert all(name.startswith(f"{module}.") for name in changed)


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def test_names_and_places_that_do_not_fit(place: Place, tmp_path: Path) -> None:
    made = packed(place, tmp_path / "made", {})
    with pytest.raises(UsageError, match=r"no such unit; for example model\.layers\.0\.mlp\.down_proj"):
        repair(options(place, made, tmp_path / "a", units=("layers.7.mlp.down_proj",)))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file").touch()
    with pytest.raises(StorageError, match="not empty"):
        repair(options(place, made, tmp_path / "b"))
    with pytest.raises(DataError, match="same content"):
        repair(options(place, made, tmp_path / "c", text=(place.calibration,)))
    with pytest.raises(UsageError, match="--extra-bpw"):
        options(place, made, tmp_path / "d", extra_bpw=-1.0)
    assert not (tmp_path / "a").exists()


def test_damaged_norm_is_restored_and_a_budget_is_spent_where_it_is_worth_it(
    place: Place, tmp_path: Path
) -> None:
    made = packed(place, tmp_path / "made", {}, "w2a-g32")
    tensors = load_file(made / "model.safetensors")
    tensors[f"{NORM}.weight"] *= torch.linspace(0.2, 1.5, 64)
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    asked = (NORM, DOWN)
    found = repair(options(place, made, tmp_path / "out", units=asked, extra_bpw=0.6, target="transformers"))
    assert found.proven
    by_name = {unit.unit: unit for unit in found.units}
    assert (by_name[NORM].before, by_name[NORM].after) == ("dense", "dense")
    assert by_name[DOWN].before == "w2a-g32"
    assert by_name[DOWN].after in {f"w{bits}{kind}-g32" for bits in range(4, 8) for kind in "as"}
    added = by_name[DOWN].bytes_added
    assert 0 < added <= 0.6 / 8 * sum(s.shape[0] * s.shape[1] for s in open_model(str(made)).map.sites)
    old, new = open_checkpoint(made).weights, open_checkpoint(tmp_path / "out").weights
    assert torch.equal(
        new.get(f"{NORM}.weight").float(), open_checkpoint(place.model).weights.get(f"{NORM}.weight")
    )
    for name in set(old.names()) - {f"{NORM}.weight", f"{DOWN}.weight"}:
        assert torch.equal(old.get(name), new.get(name))
    check_loaded(tmp_path / "out")


def test_gptq_folder(place: Place, tmp_path: Path) -> None:
    made = tmp_path / "made"
    shutil.copytree(place.model, made)
    config = json.loads((made / "config.json").read_text())
    settings = {"bits": 4, "group_size": 32, "sym": False, "desc_act": False, "checkpoint_format": "gptq"}
    config["quantization_config"] = {"quant_method": "gptq", **settings}
    (made / "config.json").write_text(json.dumps(config))
    tensors = load_file(made / "model.safetensors")
    layout = GptqLayout(4, 32, False, False, 1)
    for site in open_model(str(place.model)).map.sites:
        rounded = nearest(tensors.pop(f"{site.name}.weight"), Scheme.parse(OWN))
        tensors |= layout.write(site.name, zeroed(rounded) if site.name == DOWN else rounded)
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    found = repair(options(place, made, tmp_path / "out", units=(DOWN,), extra_bpw=0.0))
    assert found.proven
    assert found.kl_after.value < 0.7 * found.kl_before.value
    assert found.bytes_after == found.bytes_before
    assert (tmp_path / "out" / "config.json").read_bytes() == (made / "config.json").read_bytes()
    check_others(made, tmp_path / "out", DOWN)


def test_gguf_file(tmp_path: Path) -> None:
    texts = [text(tmp_path / f"{seed}.txt", seed) for seed in (1, 2)]
    reference = write(tmp_path / "reference.gguf", "llama")
    healthy = write(tmp_path / "healthy.gguf", "llama", Kind.Q8_0)
    part, damaged = "blk.1.ffn_down.weight", tmp_path / "damaged.gguf"
    raw = open_gguf(healthy).raw_rows(part).copy().reshape(-1, 34)
    raw[::3, :2] = 0  # the scale of every third block
    rewrite_gguf(healthy, damaged, {part: ("Q8_0", raw.tobytes())})
    record = repair(
        RepairOptions(
            reference=str(reference),
            candidate=str(damaged),
            out=tmp_path / "out",
            calibration=(texts[0],),
            text=(texts[1],),
            units=(DOWN,),
            extra_bpw=0.0,
            **{"sequences": 8, "length": 32, "evaluation_sequences": 8, "evaluation_length": 32},
        )
    )
    assert record.proven
    assert record.kl_after.value < 0.2 * record.kl_before.value
    assert record.bytes_after == record.bytes_before
    assert [(u.before, u.after) for u in record.units] == [("Q8_0", "Q8_0")]
    assert record.opens == str(tmp_path / "out" / "damaged.gguf")
    old, new = open_gguf(damaged), open_gguf(tmp_path / "out" / "damaged.gguf")
    assert old.tensors.keys() == new.tensors.keys()
    for name in old.tensors.keys() - {part}:
        assert torch.equal(old.get(name), new.get(name))


def test_the_command_line(place: Place, tmp_path: Path) -> None:
    made = packed(place, tmp_path / "made", {DOWN: zeroed})
    words = ["repair", str(place.model), str(made), "--calibration", str(place.calibration)]
    words += ["--text", str(place.held_out), "--out", str(tmp_path / "out"), "--units", DOWN, "--quiet"]
    words += ["--sequences", "8", "--length", "32", "--evaluation-sequences", "4", "--json"]
    words += ["--evaluation-length", "32", "--extra-bpw", "0"]
    shown = CliRunner().invoke(application(), words)
    assert shown.exit_code == 0, shown.stderr
    assert msgspec.json.decode(shown.stdout, type=Repair).proven
