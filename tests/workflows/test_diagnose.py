"""`diagnose` on a tiny model: healthy, damaged, not measurable; records, engine, command line."""

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from tiny_run import Place
from typer.testing import CliRunner

from quantriage.cli.app import application
from quantriage.cli.command import UNSOUND
from quantriage.errors import UsageError
from quantriage.records.diagnosis import Attribution, CandidateDiagnosis, Lint
from quantriage.records.run_dir import (
    ATTRIBUTION,
    CANDIDATE,
    LINT,
    LOCK,
    REPORT,
    SITES,
    SPLIT,
    SUMMARY,
    RunDir,
)
from quantriage.workflows.diagnose import diagnose
from quantriage.workflows.options import DiagnoseOptions
from workflows.test_bisect import candidate, wrong_scales

BROKEN = "model.layers.1.mlp.down_proj"


def asked(place: Place, made: Path, **changes: object) -> DiagnoseOptions:
    given = {"reference": str(place.model), "candidate": str(made), "text": (place.held_out,)}
    return DiagnoseOptions(**given | {"sequences": 4, "length": 32} | changes)  # type: ignore[arg-type]


def test_a_damaged_layer_is_the_first_cause_with_its_cost(place: Place, tmp_path: Path) -> None:
    made = candidate(place, tmp_path / "made", {BROKEN: wrong_scales})
    found = diagnose(asked(place, made, run=tmp_path / "run"))
    assert found.conclusion.verdict == "damaged"
    first = found.conclusion.causes[0]
    assert (first.code, first.units) == ("scaled", (BROKEN,))
    assert found.attribution is not None
    worst = found.attribution.units[0]
    assert (worst.unit, worst.swap_kl) == (BROKEN, first.kl)
    assert BROKEN in found.conclusion.sentence
    assert "damaged" not in {cause.code for cause in found.conclusion.causes}
    run = RunDir(tmp_path / "run")
    assert run.read(CANDIDATE, CandidateDiagnosis) == found.conclusion
    assert run.read(ATTRIBUTION, Attribution) == found.attribution
    assert run.read(LINT, Lint) == found.lint
    assert all(run.has(name) for name in (LOCK, SITES, SUMMARY, REPORT))
    assert not run.has(SPLIT)


def test_what_no_check_names_is_left_to_the_attribution(place: Place, tmp_path: Path) -> None:
    def noisy(weight):  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(3)
        moved = torch.randint(-3, 4, weight.codes.shape, generator=generator)
        return replace(weight, codes=(weight.codes.int() + moved).clamp(0, 15).to(torch.uint8))

    made = candidate(place, tmp_path / "made", {BROKEN: noisy})
    found = diagnose(asked(place, made))
    assert found.conclusion.verdict in ("damaged", "badly quantized")
    assert found.conclusion.causes[0].units == (BROKEN,)
    assert found.conclusion.causes[0].code in ("damaged", "badly done", "large-error")


def test_the_reference_itself_is_healthy(place: Place) -> None:
    found = diagnose(asked(place, place.model))
    assert (found.conclusion.verdict, found.conclusion.causes) == ("healthy", ())


def test_plain_rounding_is_not_damaged(place: Place, tmp_path: Path) -> None:
    found = diagnose(asked(place, candidate(place, tmp_path / "made", {})))
    assert found.conclusion.verdict in ("badly quantized", "at the limit of its bits")
    assert {cause.code for cause in found.conclusion.causes} <= {"badly done", "hard"}


def test_a_file_that_cannot_be_measured_is_diagnosed_by_its_lint(place: Place, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    made = candidate(place, tmp_path / "made", {})
    (file,) = made.glob("*.safetensors")
    tensors = load_file(file)
    del tensors["model.layers.1.input_layernorm.weight"]
    save_file(tensors, file)
    found = diagnose(asked(place, made, run=tmp_path / "run"))
    assert found.attribution is None
    assert found.conclusion.verdict == "damaged"
    assert found.conclusion.causes[0].units == ("model.layers.1.input_layernorm",)
    assert RunDir(tmp_path / "run").has(REPORT)
    assert not RunDir(tmp_path / "run").has(ATTRIBUTION)


def test_nan_is_named_and_the_rest_is_measured(place: Place, tmp_path: Path) -> None:
    made = candidate(place, tmp_path / "made", {BROKEN: lambda w: replace(w, scale=w.scale * float("nan"))})
    found = diagnose(asked(place, made))
    first = found.conclusion.causes[0]
    assert (first.code, first.units, first.kl) == ("nonfinite-scale", (BROKEN,), None)
    assert found.attribution is not None


def test_settings_that_differ_are_a_cause_of_the_whole(place: Place, tmp_path: Path) -> None:
    made = candidate(place, tmp_path / "made", {})
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    first = diagnose(asked(place, made)).conclusion.causes[0]
    assert (first.code, first.units) == ("config-differs", ())


def test_an_engine_adds_the_split(place: Place, tmp_path: Path) -> None:
    made = candidate(place, tmp_path / "made", {})
    found = diagnose(asked(place, made, engine=("transformers",), run=tmp_path / "run"))
    assert found.split is not None
    assert found.split.carrier == "none", found.split.sentence
    assert RunDir(tmp_path / "run").has(SPLIT)


def test_a_budget_of_nothing_still_predicts(place: Place, tmp_path: Path) -> None:
    made = candidate(place, tmp_path / "made", {BROKEN: wrong_scales})
    found = diagnose(asked(place, made, budget=0.0))
    assert found.attribution is not None
    assert found.attribution.truncated
    assert found.conclusion.causes[0].units == (BROKEN,)
    with pytest.raises(UsageError, match="--budget"):
        asked(place, made, budget=-1.0)


def test_command_line(place: Place, tmp_path: Path) -> None:
    made = candidate(place, tmp_path / "made", {BROKEN: wrong_scales})
    words = ["diagnose", str(place.model), str(made), "--text", str(place.held_out), "--quiet"]
    words += ["--sequences", "4", "--length", "32", "--run", str(tmp_path / "run")]
    done = CliRunner().invoke(application(), words)
    assert done.exit_code == UNSOUND, done.stderr
    assert done.stdout.startswith("damaged: ")
    assert "1. scaled (KL " in done.stdout
    assert "forward passes" in done.stdout
    assert f"report: {tmp_path / 'run' / REPORT}" in done.stdout
    record = CliRunner().invoke(application(), [*words, "--json"]).stdout
    assert msgspec.json.decode(record, type=CandidateDiagnosis).causes[0].units == (BROKEN,)
    healthy = ["diagnose", str(place.model), str(place.model), *words[3:]]
    assert CliRunner().invoke(application(), healthy).exit_code == 0
