"""`--fold channels`: the same function in another scaling, exported, proven on the original, resumed."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import Place, digests
from transformers import AutoModelForCausalLM

from formats import hf_folders, tiny_gguf
from quantriage.errors import ResumeError, UsageError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.model.folds import find_folds
from quantriage.records.run_dir import LOCK, PROOF, QUANTIZED, RunDir
from quantriage.records.types import Lock, Proof, QuantizedSite
from quantriage.stream.compute import exact
from quantriage.workflows.diagnose import Diagnosed, diagnose
from quantriage.workflows.evaluate import evaluate
from quantriage.workflows.fold import FOLD, seen_through
from quantriage.workflows.lint import lint
from quantriage.workflows.meter import Meter
from quantriage.workflows.opened import open_model
from quantriage.workflows.options import DiagnoseOptions, EvaluateOptions, LintOptions, QuantizeOptions
from quantriage.workflows.quantize import quantize
from quantriage.workflows.recover import recover


def kl_of(reference: Path, candidate: Path, text: Path) -> float:
    options = EvaluateOptions(
        reference=str(reference), candidate=str(candidate), text=(text,), sequences=4, length=48
    )
    return evaluate(options).results[-1].kl.value


NORM = "model.layers.1.post_attention_layernorm.weight"


def test_the_scaled_reference_is_the_reference(place: Place, tmp_path: Path) -> None:
    """KL of the model that is rounded against the original, before anything is rounded."""
    options = place.quantize(tmp_path / "out", scheme="w4a-g32", fold="channels")
    (said,) = (f for f in quantize(options).findings if f.code == "channels-folded")
    assert said.text.startswith("channels of 8 of 8 inputs")
    opened = open_model(str(place.model))
    scales = load_file(options.run_folder / FOLD)
    assert min(float(s.log().std()) for s in scales.values()) > 0.02
    scaled = seen_through(opened, find_folds(opened.model), scales)
    tokens = opened.tokens((place.held_out,), 4, 48, "evaluation")
    meter = Meter(opened.model, opened.map, tokens, exact(), tmp_path / "cache", tmp_path / "spill", 1 << 30)
    assert float(meter.model_scores(scaled.model, opened.map).kl.abs().max()) < 1e-6


def test_the_export_is_the_same_model_with_other_norms(place: Place, tmp_path: Path) -> None:
    """In 8 bits next to nothing is lost, so a norm that did not match its columns would show."""
    kl, tokens = {}, open_model(str(place.model)).tokens((place.held_out,), 4, 48, "evaluation").tokens
    for fold in ("none", "channels"):
        options = place.quantize(tmp_path / fold, scheme="w8s-channel", fold=fold)
        quantize(options)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / fold, dtype=torch.float32)
        original = AutoModelForCausalLM.from_pretrained(place.model)
        with torch.no_grad():
            ours, theirs = (torch.log_softmax(m(tokens).logits.double(), -1) for m in (loaded, original))
        kl[fold] = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
        assert RunDir(options.run_folder).read(LOCK, Lock).settings["fold"] == fold
    norms = [open_checkpoint(tmp_path / fold).weights.get(NORM).float() for fold in kl]
    assert float((norms[1] / norms[0]).std()) > 0.02
    assert 0 < kl["channels"] < 2 * kl["none"]


def test_norms_are_stored_without_error(place: Place, tmp_path: Path) -> None:
    options = place.quantize(tmp_path / "out", scheme="w4a-g32", fold="channels")
    quantize(options)
    scales = load_file(options.run_folder / FOLD)["1.post_attention_layernorm.weight"]
    original = load_file(place.model / "model.safetensors")[NORM]
    stored = open_checkpoint(options.out).weights.get(NORM)
    assert stored.dtype == torch.float16
    torch.testing.assert_close(stored.float() * scales, original, atol=0.0, rtol=3e-7)


def test_a_model_rescaled_by_somebody_is_rounded_as_the_original(place: Place, tmp_path: Path) -> None:
    """Objectives are relative output errors; unfolded, theirs differ."""
    rescaled = tmp_path / "model"
    rescaled.mkdir()
    for path in place.model.iterdir():
        (rescaled / path.name).write_bytes(path.read_bytes())
    tensors = load_file(rescaled / "model.safetensors")
    factors = torch.exp2(torch.randint(-2, 3, (64,), generator=torch.Generator().manual_seed(1)).float())
    tensors[NORM] /= factors
    for module in ("gate_proj", "up_proj"):
        tensors[f"model.layers.1.mlp.{module}.weight"] *= factors
    save_file(tensors, rescaled / "model.safetensors", metadata={"format": "pt"})
    errors: dict[str, list[float]] = {}
    for fold in ("none", "channels"):
        for model in (place.model, rescaled):
            out = tmp_path / f"{fold}-{model.parent.name}"
            options = place.quantize(out, model=str(model), scheme="w4a-g32", fold=fold)
            quantize(options)
            records = RunDir(options.run_folder).read_many(QUANTIZED, QuantizedSite)
            (found,) = (r.objective for r in records if r.site == "model.layers.1.mlp.gate_proj")
            errors.setdefault(fold, []).append(found)
    assert errors["none"][1] > 1.2 * errors["none"][0]
    assert errors["channels"][1] == pytest.approx(errors["channels"][0], rel=0.05)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_gguf_holds_the_divided_norms(kind: str, tmp_path: Path) -> None:
    """All else that is not rounded keeps its values, and in 8 bits the file is nearly the reference."""
    tiny_gguf.text(tmp_path / "text.txt")
    reference = tmp_path / "tiny-F32.gguf"
    if kind == "file":
        tiny_gguf.write(reference, "llama", deviation=0.15)
    else:
        reference = tmp_path / "source"
        hf_folders.save_model(reference, "qwen2")  # biases on queries, keys and values
        hf_folders.save_tokenizer(reference, "qwen2")
    found = {}
    for fold in ("none", "channels"):
        options = QuantizeOptions(
            model=str(reference), out=tmp_path / fold, calibration=(tmp_path / "text.txt",),
            sequences=4, length=32, target="llama.cpp", scheme="Q8_0", fold=fold,
        )  # fmt: skip
        quantize(options)
        (path,) = options.out.iterdir()
        weights = open_checkpoint(path).weights
        found[fold] = weights, kl_of(reference, path, tmp_path / "text.txt")
    scales = load_file(options.run_folder / FOLD)
    vectors = {f"model.layers.{name}": s for name, s in scales.items() if "norm" in name}
    assert len(vectors) == 4
    for name in found["none"][0].names():
        plain, folded = (found[fold][0].get(name).float() for fold in found)
        if name in vectors:
            assert float((plain / folded).std()) > 0.02
            torch.testing.assert_close(folded * vectors[name], plain, atol=0.0, rtol=3e-7)
        elif "proj" not in name:
            assert torch.equal(plain, folded), name
    assert 0 < found["channels"][1] < 2 * found["none"][1]


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A model with biases, its text, and its folded export."""
    folder = tmp_path_factory.mktemp("folded")
    hf_folders.save_model(folder / "model", "qwen2")
    hf_folders.save_tokenizer(folder / "model", "qwen2")
    words = random.Random(0).choices(" ".join(hf_folders.TEXTS).split(), k=3000)
    (folder / "text.txt").write_text(" ".join(words), encoding="utf-8")
    options = QuantizeOptions(
        model=str(folder / "model"), out=folder / "out", calibration=(folder / "text.txt",),
        sequences=16, length=64, target="transformers", scheme="w4a-g32", fold="channels",
    )  # fmt: skip
    quantize(options)
    return folder / "model", folder / "out", folder / "text.txt"


def test_lint_takes_a_folded_export_for_sound(folded: tuple[Path, Path, Path]) -> None:
    """Norms, a bias, rows and columns differ from the reference's; that others undo it has to be seen."""
    model, out, _ = folded
    record = lint(LintOptions(candidate=str(out), reference=str(model)))
    assert {f.check for f in record.findings} == {"rescaled"}


def diagnosed(model: Path, candidate: Path, text: Path) -> Diagnosed:
    options = DiagnoseOptions(
        reference=str(model), candidate=str(candidate), text=(text,), sequences=4, length=64
    )
    return diagnose(options)


def test_diagnosis_sees_rounding_alone_in_a_folded_export(folded: tuple[Path, Path, Path]) -> None:
    model, out, text = folded
    found = diagnosed(model, out, text)
    assert found.conclusion.verdict in ("badly quantized", "at the limit of its bits", "healthy")
    assert found.attribution is not None
    assert not any("norm" in name for cause in found.conclusion.causes for name in cause.units)
    assert max(unit.relative_error for unit in found.attribution.units) < 0.3
    assert found.attribution.total_kl == pytest.approx(kl_of(model, out, text), rel=0.5)


def test_a_fault_in_a_folded_export_is_named_alone(folded: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, out, text = folded
    broken, name = tmp_path / "broken", "model.layers.1.self_attn.q_proj"
    shutil.copytree(out, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors[f"{name}.weight_scale"] = tensors[f"{name}.weight_scale"].roll(1, dims=0).contiguous()
    tensors[f"{name}.weight_scale"][: len(tensors[f"{name}.weight_scale"]) // 2] *= 4
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    found = diagnosed(model, broken, text)
    assert found.conclusion.verdict == "damaged"
    assert found.conclusion.causes[0].units == (name,)
    assert not any("norm" in unit for cause in found.conclusion.causes for unit in cause.units)


def test_another_fold_does_not_resume(place: Place, tmp_path: Path) -> None:
    quantize(place.quantize(tmp_path / "out", scheme="w4a-g32", fold="channels"))
    with pytest.raises(ResumeError, match="fold was 'channels', now 'none'"):
        quantize(place.quantize(tmp_path / "out", scheme="w4a-g32", fold="none", replace=True))


def test_a_run_killed_after_its_fold_goes_on_with_it(place: Place, tmp_path: Path) -> None:
    options = place.quantize(tmp_path / "out", scheme="w4a-g32", fold="channels")
    quantize(options)
    expected = digests(options.out)
    ledger = options.run_folder / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    assert b'"fold"' in lines[1]
    ledger.write_bytes(b"".join(lines[:2]))  # as a kill leaves it before the first block
    stages: list[str] = []
    again = place.quantize(tmp_path / "out", scheme="w4a-g32", fold="channels", replace=True)
    quantize(again, lambda stage, done, total: stages.append(stage))
    assert digests(options.out) == expected
    assert stages
    assert not any(stage.startswith("fold") for stage in stages)
    (options.run_folder / FOLD).write_bytes(b"something else")
    with pytest.raises(ResumeError, match=FOLD):
        quantize(again)


def test_recover_proves_a_folded_mix_against_the_original(place: Place, tmp_path: Path) -> None:
    """The saved weights in plain transformers give the proof's KL; plain rounding is that of the original."""
    options = place.recover(tmp_path / "channels", fold="channels")
    verdict = recover(options).verdict
    assert verdict is not None
    proof = RunDir(options.run_folder).read(PROOF, Proof)
    (rtn,) = (r for r in proof.results if r.label.endswith(" RTN"))
    plain = place.quantize(tmp_path / "rtn", scheme=rtn.label.split()[0], method="rtn")
    quantize(plain)
    assert rtn.kl.value == pytest.approx(
        kl_of(place.model, plain.out, place.held_out), rel=1e-3
    )  # norms in float16
    weights = open_checkpoint(tmp_path / "channels").weights
    tokens = open_model(str(place.model)).tokens((place.held_out,), 4, 48, "evaluation").tokens
    original, changed = (AutoModelForCausalLM.from_pretrained(place.model) for _ in range(2))
    changed.load_state_dict({name: weights.get(name).float() for name in changed.state_dict()})
    with torch.no_grad():
        ours, theirs = (torch.log_softmax(m(tokens).logits.double(), dim=-1) for m in (changed, original))
    kl = float((theirs.exp() * (theirs - ours)).sum(dim=-1)[:, :-1].mean())
    assert verdict.kl == pytest.approx(kl, rel=1e-4)


def test_a_fold_that_there_is_not_is_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--fold awq: expected one of channels, none"):
        place.quantize(tmp_path / "out", scheme="w4a-g32", fold="awq")
