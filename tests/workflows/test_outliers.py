"""`outliers` on a real folder: records, report and lock in the run folder, answers on the command line."""

from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cli.word_model import save_model
from quantriage.cli.app import application
from quantriage.errors import ArchitectureError, BudgetError, UsageError
from quantriage.records.outliers import Outliers
from quantriage.records.run_dir import LOCK, OUTLIERS, SUMMARY, RunDir
from quantriage.records.types import Lock, RunSummary
from quantriage.workflows.outliers import CHANNELS, outliers
from quantriage.workflows.outliers_options import OutliersOptions
from workflows.tiny_run import Place

PLANTED = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one weight far out and one channel that the norm before q, k and v multiplies by 100."""
    folder = save_model(tmp_path_factory.mktemp("planted") / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[f"{PLANTED}.weight"][3, 17] = 30 * tensors[f"{PLANTED}.weight"].std()
    tensors["model.layers.0.input_layernorm.weight"][9] = 100.0
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def test_records_and_report(place: Place, planted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = OutliersOptions(
        model=str(planted), text=(place.calibration,), run=run, sequences=4, length=32, scheme=("w4a-g32",)
    )
    said: list[tuple[str, int, int]] = []
    record = outliers(options, lambda *step: said.append(step))
    assert said == [("outliers", 1, 2), ("outliers", 2, 2)]
    assert RunDir(run).read(OUTLIERS, Outliers) == record
    assert (len(record.weights), len(record.inputs), len(record.states)) == (14, 8, 3)
    assert [w.site for w in record.weights if w.warning] == [PLANTED]
    found = {c.code: c for c in record.conclusions}
    assert found["weight-outliers"].places == (PLANTED,)
    assert "input channel 17 of 128 and output channel 3 of 64" in found["weight-outliers"].sentence
    assert found["outlier-channels"].places[0] == "model.layers.0.self_attn.q_proj"
    assert "channel 9 (at" in found["outlier-channels"].sentence
    assert RunDir(run).read(LOCK, Lock).settings == {"schemes": "w4a-g32"}
    assert RunDir(run).read(SUMMARY, RunSummary).title == "Outliers of model"
    channels = load_file(run / CHANNELS)
    assert channels["model.layers.0.self_attn.q_proj.maximum"].argmax() == 9
    assert channels["state after block 1.persistence"].shape == (64,)
    assert sorted(p.name for p in run.iterdir()) == sorted(
        [OUTLIERS, LOCK, SUMMARY, CHANNELS, "sites.json", "report.html"]
    )
    page = (run / "report.html").read_text()
    assert PLANTED in page
    assert "No verdict" not in page


def test_the_same_command_gives_the_same_figures(place: Place, planted: Path) -> None:
    options = OutliersOptions(model=str(planted), text=(place.calibration,), sequences=4, length=32)
    first, second = outliers(options), outliers(options)
    same = {"seconds": 0.0, "peak_memory_bytes": 0}
    assert msgspec.structs.replace(first, **same) == msgspec.structs.replace(second, **same)


def test_weights_alone_need_no_text(place: Place) -> None:
    record = outliers(OutliersOptions(model=str(place.model)))
    assert (record.inputs, record.states, record.text) == ((), (), "")
    assert [c.code for c in record.conclusions] == ["weights-plain"]


def test_command_line(place: Place, planted: Path, tmp_path: Path) -> None:
    def invoke(*extra: object) -> tuple[int, str]:
        words = ["outliers", str(planted), "--quiet", "--sequences", "4", "--length", "32", *map(str, extra)]
        done = CliRunner().invoke(application(), words)
        return done.exit_code, done.stdout

    code, text = invoke("--text", place.calibration, "--run", tmp_path / "run")
    assert code == 0
    assert "1 of 14 weight matrices" in text
    assert f"{PLANTED}, input channel 17; wastes" in text
    assert f"report: {tmp_path / 'run' / 'report.html'}" in text
    code, text = invoke("--json")
    assert code == 0
    assert msgspec.json.decode(text, type=Outliers).weights


def test_what_cannot_be_taken(place: Place) -> None:
    with pytest.raises(UsageError, match="--length 0"):
        OutliersOptions(model="m", length=0)
    with pytest.raises(BudgetError, match="w9x"):
        outliers(OutliersOptions(model=str(place.model), scheme=("w9x",)))


def test_a_model_that_overflows_is_refused(place: Place, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.full((128, 64), 3e38)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ArchitectureError, match="not finite"):
        outliers(OutliersOptions(model=str(folder), text=(place.calibration,), sequences=4, length=32))
