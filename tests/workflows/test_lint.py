"""`lint` on real folders: sound ones pass, damaged ones fail with their cause and exit code."""

import json
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cli.word_model import save_model
from formats.tiny_llama import save_dense, save_packed
from quantriage.cli.app import application
from quantriage.cli.command import UNSOUND
from quantriage.errors import CheckpointError
from quantriage.numerics.schemes import Scheme
from quantriage.records.diagnosis import Lint
from quantriage.workflows.lint import lint
from quantriage.workflows.options import LintOptions, QuantizeOptions
from quantriage.workflows.quantize import quantize
from workflows.tiny_run import Place

SCHEME = Scheme.parse("w4a-g32")


def checks(candidate: Path, reference: Path | None = None) -> set[tuple[str, str | None]]:
    record = lint(
        LintOptions(candidate=str(candidate), reference=None if reference is None else str(reference))
    )
    return {(one.check, one.site) for one in record.findings}


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """A dense model and its packed form with the same tokenizer."""
    reference, candidate = tmp_path / "reference", tmp_path / "candidate"
    save_dense(reference)
    save_packed(candidate, lambda name: SCHEME)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (candidate / file).write_bytes((reference / file).read_bytes())
    return reference, candidate


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(folder: Path, name: str, value: torch.Tensor | None) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(name)
    save_file(tensors | ({} if value is None else {name: value}), file)


def test_a_sound_folder(models: tuple[Path, Path], tmp_path: Path) -> None:
    reference, candidate = models
    options = LintOptions(candidate=str(candidate), reference=str(reference), run=tmp_path / "run")
    record = lint(options)
    assert record.findings == ()
    assert (record.sites, record.layout) == (14, "compressed-tensors, pack-quantized")
    assert msgspec.json.decode((tmp_path / "run" / "lint.json").read_bytes(), type=Lint) == record
    assert checks(candidate) == checks(reference) == checks(reference, reference) == set()


@pytest.mark.parametrize(
    ("method", "scheme"),
    [("rtn", "w4a-g32"), ("gptq", "w4a-g32"), ("gptq", "w3a-g32"), ("gptq-plain", "w4s-channel")],
)
def test_what_our_own_methods_write_is_sound(place: Place, tmp_path: Path, method: str, scheme: str) -> None:
    out = tmp_path / "out"
    options: QuantizeOptions = place.quantize(out, method=method, scheme=scheme)
    quantize(options)
    assert checks(out, place.model) == set()
    assert checks(out) == set()


def test_settings_that_differ(models: tuple[Path, Path]) -> None:
    reference, candidate = models
    edit_config(candidate, rms_norm_eps=1e-3)
    (candidate / "chat_template.jinja").unlink()
    assert checks(candidate, reference) == {("config-differs", None), ("chat-template-differs", None)}


def test_missing_tensors_and_shapes_are_findings(models: tuple[Path, Path]) -> None:
    _, candidate = models
    edit_tensors(candidate, "model.layers.1.input_layernorm.weight", None)
    edit_tensors(candidate, "model.norm.weight", torch.ones(32))
    edit_tensors(candidate, "lm_head.weight", None)
    assert checks(candidate) == {
        ("missing-tensor", "model.layers.1.input_layernorm.weight"),
        ("shape-mismatch", "model.norm.weight"),
        ("head-missing", "lm_head.weight"),
    }


def test_an_untied_head(tmp_path: Path) -> None:
    folder = save_dense(tmp_path / "model")
    edit_config(folder, tie_word_embeddings=True)
    assert ("tied-untied", "lm_head.weight") in checks(folder)


def test_a_lying_packed_shape_is_a_finding(models: tuple[Path, Path]) -> None:
    _, candidate = models
    module = "model.layers.0.mlp.up_proj"
    edit_tensors(candidate, f"{module}.weight_shape", torch.tensor([96, 9999]))
    assert module in {
        site for check, site in checks(candidate) if check in ("unreadable-weight", "shape-mismatch")
    } or (
        "unreadable-checkpoint",
        None,
    ) in checks(candidate)


def test_a_config_that_does_not_fit_is_a_finding_and_a_torn_file_is_not(models: tuple[Path, Path]) -> None:
    _, candidate = models
    whole = json.loads((candidate / "config.json").read_text())
    broken = whole["quantization_config"] | {"config_groups": {}}
    edit_config(candidate, quantization_config=broken)
    assert checks(candidate) == {("unreadable-checkpoint", None)}
    file = candidate / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        checks(candidate)


def test_command_line(models: tuple[Path, Path]) -> None:
    reference, candidate = models

    def invoke(*extra: object) -> tuple[int, str]:
        words = ["lint", str(candidate), "--quiet", *map(str, extra)]
        done = CliRunner().invoke(application(), words)
        return done.exit_code, done.stdout

    assert invoke("--reference", reference)[0] == 0
    edit_config(candidate, rms_norm_eps=1e-3)
    code, text = invoke("--reference", reference)
    assert code == UNSOUND
    assert "config-differs: rms_norm_eps is 0.001, the reference has 1e-06" in text
    code, text = invoke("--reference", reference, "--json")
    assert code == UNSOUND
    assert msgspec.json.decode(text, type=Lint).findings[0].check == "config-differs"


def test_a_model_of_words_is_sound(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    assert checks(tmp_path / "model") == set()
