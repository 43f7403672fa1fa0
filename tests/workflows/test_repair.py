"""Damage in each format is repaired on the saved file, with every other byte as it was."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import Place
from transformers import AutoModelForCausalLM

from quantriage.diagnose.fisher import nearest
from quantriage.errors import DataError, StorageError, UsageError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme
from quantriage.records.diagnosis import Repair
from quantriage.records.run_dir import ATTRIBUTION, LOCK, REPAIR, REPORT, RunDir
from quantriage.stream.compute import exact
from quantriage.workflows.export import export
from quantriage.workflows.meter import Meter
from quantriage.workflows.opened import open_model
from quantriage.workflows.options import RepairOptions
from quantriage.workflows.repair import repair

Damage = dict[str, Callable[[QuantizedTensor], QuantizedTensor]]
OWN = "w4a-g32"
DDamage = dict[str, Callable[[QuantizedTensor], QuantizedTensor]]
OWN = "model.layers.1.mlp.down_proj"
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


def packed(
    place: Place, folder: Path, damage: dict[str, Callable[[QuantizedTensor], QuantizedTensor]]
) -> Path:
    """Plain 4-bit rounding as compressed-tensors, some sites damaged."""
    scheme = Scheme.parse(OWN)
    opened = open_model(str(place.model))
    weights = opened.checkpoint.weights

    def quantized(name: str) -> QuantizedTensor:
        found = nearest(weights.get(f"{name}.weight").float(), scheme)
        return damage[name](found) if name in damage else found

    schemes = {site.name: scheme for site in opened.map.sites}
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
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = open_checkpoint(tmp_path / "out").weights
    with torch.no_grad():
        linear = whole.get_submodule(DOWN)
        inputs = torch.eye(linear.in_features, dtype=whole.dtype)
        assert torch.allclose(linear(inputs).T.float(), expected.get(f"{DOWN}.weight"), atol=1e-3)


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
