"""`quantize` from one scheme and from a plan file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import Place, digests

from quantriage.diagnose.fisher import nearest
from quantriage.errors import BudgetError, ResumeError, UsageError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.numerics.schemes import Scheme
from quantriage.records.run_dir import PLAN, QUANTIZED, RunDir
from quantriage.records.types import Plan, QuantizedSite
from quantriage.workflows.quantize import quantize
from small_models import save


def test_plain_rounding_of_one_scheme_is_what_lies_on_disk(place: Place, tmp_path: Path) -> None:
    options = place.quantize(tmp_path / "out", scheme="w4a-g32", method="rtn")
    quantize(options)
    original = load_file(place.model / "model.safetensors")
    saved = open_checkpoint(options.out).weights
    modules = [a.site for a in RunDir(options.run_folder).read(PLAN, Plan).assignments]
    assert len(modules) == 14
    for module in modules:
        expected = nearest(original[f"{module}.weight"], Scheme.parse("w4a-g32")).dequantize()
        assert torch.equal(saved.get(f"{module}.weight"), expected)
    for name in original.keys() - {f"{module}.weight" for module in modules}:
        assert torch.equal(saved.get(name), original[name].half())


@pytest.mark.parametrize("method", ["gptq", "gptq-unweighted", "gptq-plain"])
def test_calibrated_rounding_lowers_its_objective(place: Place, tmp_path: Path, method: str) -> None:
    options = place.quantize(tmp_path / "out", scheme="w3a-g32", method=method)
    quantize(options)
    records = RunDir(options.run_folder).read_many(QUANTIZED, QuantizedSite)
    assert {(r.scheme, r.method, r.tokens) for r in records} == {("w3a-g32", method, 4 * 32)}
    total, plain = sum(r.objective for r in records), sum(r.rtn_objective for r in records)
    assert total < plain


def test_a_plan_file_is_carried_out_line_by_line(place: Place, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "target: transformers\nsites:\n"
        '  "*": w4a-g32 rtn\n  "*.down_proj": w8s-channel rtn\n  "*.0.self_attn.o_proj": none\n'
    )
    options = place.quantize(tmp_path / "out", plan=plan)
    quantize(options)
    weights = open_checkpoint(options.out).weights
    found = {}
    for block in range(2):
        for module in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"):
            stored = weights.stored(f"model.layers.{block}.{module}")
            found[f"{block}.{module}"] = None if stored is None else str(stored.scheme)
    assert found == {
        "0.self_attn.q_proj": "w4a-g32",
        "0.self_attn.o_proj": None,
        "0.mlp.down_proj": "w8s-channel",
        "1.self_attn.q_proj": "w4a-g32",
        "1.self_attn.o_proj": "w4a-g32",
        "1.mlp.down_proj": "w8s-channel",
    }


def test_a_group_that_does_not_divide_is_resolved_and_said(place: Place, tmp_path: Path) -> None:
    options = place.quantize(tmp_path / "out", scheme="w4a-g128", method="rtn")
    summary = quantize(options)
    said = [f for f in summary.findings if f.code == "group-size-resolved"]
    assert said
    assert all("64" in f.text and "128" in f.text for f in said)
    schemes = {a.site: a.scheme for a in RunDir(options.run_folder).read(PLAN, Plan).assignments}
    assert schemes["model.layers.0.mlp.down_proj"] == "w4a-g128"
    assert schemes["model.layers.0.mlp.up_proj"] == "w4a-g64"
    assert {f.site for f in said} >= {n for n, s in schemes.items() if s == "w4a-g64"} or len(said) == 1


def test_the_same_command_twice_gives_the_same_bytes(place: Place, tmp_path: Path) -> None:
    for name in ("one", "two"):
        quantize(place.quantize(tmp_path / name, scheme="w4a-g32"))
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_another_scheme_does_not_resume(place: Place, tmp_path: Path) -> None:
    quantize(place.quantize(tmp_path / "out", scheme="w4a-g32", method="rtn"))
    with pytest.raises(ResumeError, match="plan was"):
        quantize(place.quantize(tmp_path / "out", scheme="w4a-g64", method="rtn", replace=True))


def test_what_is_neither_plan_nor_scheme_is_refused(place: Place, tmp_path: Path) -> None:
    for extra in ({}, {"scheme": "w4a-g32", "plan": tmp_path / "p"}, {"plan": tmp_path / "nowhere"}):
        with pytest.raises(UsageError, match="plan"):
            quantize(place.quantize(tmp_path / "out", **extra))
    with pytest.raises(UsageError, match="nosuch"):
        quantize(place.quantize(tmp_path / "out", scheme="w4a-g32", method="nosuch"))


def test_transposed_weights_are_refused_before_any_work(place: Place, tmp_path: Path) -> None:
    save("gpt2", tmp_path / "gpt2")
    told: list[str] = []
    options = place.quantize(tmp_path / "out", model=str(tmp_path / "gpt2"), scheme="w4a-g32")
    with pytest.raises(BudgetError, match=r"transformer\.h\.0\.attn\.c_attn .*Conv1D"):
        quantize(options, lambda stage, done, total: told.append(stage))
    assert told == []
    assert not options.out.exists()
