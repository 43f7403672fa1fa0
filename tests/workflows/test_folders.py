"""`quantize --target gptq | awq`: the weights of compressed-tensors, in the words of another format."""

import json
from pathlib import Path

import pytest
import torch
from tiny_run import Place

from quantriage.errors import BudgetError, UsageError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.workflows.options import PlanOptions
from quantriage.workflows.plan import plan
from quantriage.workflows.quantize import quantize
from quantriage.workflows.recover import recover


def modules_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every projection's weight as our reader dequantizes it."""
    weights = open_checkpoint(folder).weights
    return {name: weights.get(name) for name in weights.names() if name.endswith("_proj.weight")}


@pytest.mark.parametrize(
    ("target", "scheme"),
    [
        ("gptq", "w4a-g32"),
        ("gptq", "w3s-g32"),
        ("gptq", "w8s-channel"),
        ("awq", "w4a-g32"),
        ("awq", "w4s-g64"),
    ],
)
def test_the_weights_are_those_of_compressed_tensors(
    place: Place, tmp_path: Path, target: str, scheme: str
) -> None:
    ours, usual = tmp_path / "ours", tmp_path / "usual"
    quantize(place.quantize(ours, scheme=scheme, target=target))
    quantize(place.quantize(usual, scheme=scheme))
    assert open_checkpoint(ours).kind == target
    found, expected = modules_of(ours), modules_of(usual)
    assert len(found) == 14
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.equal(found[name], expected[name]), name


def test_a_plan_of_several_schemes_becomes_rules_of_gptq(place: Place, tmp_path: Path) -> None:
    written = tmp_path / "plan.yaml"
    written.write_text(
        "target: gptq\nsites:\n"
        '  "*": w4a-g32 rtn\n  "*.down_proj": w8s-channel rtn\n  "*.0.self_attn.o_proj": none\n'
    )
    out = tmp_path / "out"
    quantize(place.quantize(out, plan=written, target=None))
    weights = open_checkpoint(out).weights
    assert weights.stored("model.layers.0.self_attn.o_proj") is None
    down, query = (weights.stored(f"model.layers.1.{m}") for m in ("mlp.down_proj", "self_attn.q_proj"))
    assert down is not None
    assert query is not None
    assert (str(down.scheme), str(query.scheme)) == ("w8s-channel", "w4a-g32")
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    rules = list(settings["dynamic"])
    assert sum(rule.startswith("+:") for rule in rules) == 2
    assert [rule for rule in rules if rule.startswith("-:")] == [r"-:^model\.layers\.0\.self_attn\.o_proj$"]


def test_awq_refuses_two_schemes_before_any_work(place: Place, tmp_path: Path) -> None:
    written = tmp_path / "plan.yaml"
    written.write_text('target: awq\nsites:\n  "*": w4a-g32 rtn\n  "*.down_proj": w4a-g64 rtn\n')
    with pytest.raises(BudgetError, match="AWQ has one scheme for all modules"):
        quantize(place.quantize(tmp_path / "out", plan=written, target=None))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["gptq", "awq"])
def test_no_budget_is_spent_in_a_format_of_one_scheme(place: Place, tmp_path: Path, target: str) -> None:
    with pytest.raises(UsageError, match="expected `quantize --scheme`"):
        recover(place.recover(tmp_path / "out", target=target))
    run = tmp_path / "out.run"
    assert not run.exists()
    quantize(place.quantize(tmp_path / "made", scheme="w4a-g32", method="rtn"))
    with pytest.raises(UsageError, match="expected `quantize --scheme`"):
        plan(PlanOptions(run=tmp_path / "made.run", bpw=4.5, target=target))
