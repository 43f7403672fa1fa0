"""Planted culprits in a packed export, found by every criterion; what a command is given; records and CLI."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from tiny_run import Place
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from quantriage.cli.app import application
from quantriage.diagnose.fisher import nearest
from quantriage.errors import QuantriageError, UsageError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme
from quantriage.records.diagnosis import Attribution, Bisection
from quantriage.records.run_dir import BISECTION, LOCK, REPORT, RunDir
from quantriage.workflows.attribute import attribute
from quantriage.workflows.bisect import bisect
from quantriage.workflows.export import export
from quantriage.workflows.opened import open_model
from quantriage.workflows.options import BisectOptions

SCHEME = Scheme.parse("w4a-g32")
FINE = Scheme.parse("w8a-g32")
Damage = Mapping[str, Callable[[QuantizedTensor], QuantizedTensor]]


def wrong_scales(weight: QuantizedTensor) -> QuantizedTensor:
    """All scales 40% too large."""
    return replace(weight, scale=weight.scale * 1.4)


def half(weight: QuantizedTensor) -> QuantizedTensor:
    return replace(weight, scale=weight.scale * 0.5)


def candidate(place: Place, folder: Path, damage: Damage, scheme: Scheme = SCHEME) -> Path:
    """Plain rounding of the model, with some of its sites damaged."""
    opened = open_model(str(place.model))
    weights = opened.checkpoint.weights

    def quantized(name: str) -> QuantizedTensor:
        found = nearest(weights.get(f"{name}.weight").float(), scheme)
        return damage[name](found) if name in damage else found

    schemes = {site.name: scheme for site in opened.map.sites}
    export(opened.model, opened.map, schemes, quantized, folder)
    return folder


def options(place: Place, made: Path, run: Path, **changes: object) -> BisectOptions:
    given = {"reference": str(place.model), "candidate": str(made), "text": (place.held_out,), "run": run}
    return BisectOptions(**given | {"sequences": 4, "length": 32} | changes)  # type: ignore[arg-type]


LAYER = "model.layers.{}.{}".format
PLANTED = (
    (LAYER(1, "mlp.down_proj"),),
    (LAYER(0, "mlp.up_proj"), LAYER(1, "self_attn.v_proj")),
    (LAYER(0, "self_attn.o_proj"), LAYER(0, "mlp.down_proj"), LAYER(1, "mlp.gate_proj")),
)


@pytest.mark.parametrize("culprits", PLANTED, ids=len)
def test_planted_culprits_are_found_among_healthy_rounding(
    place: Place, culprits: tuple[str, ...], tmp_path: Path
) -> None:
    made = candidate(place, tmp_path / "made", dict.fromkeys(culprits, wrong_scales), FINE)
    found = bisect(options(place, made, tmp_path / "run"))
    assert sorted(found.culprits) == sorted(culprits)
    assert found.evaluations == len(found.steps) + 1 <= 4 * len(culprits) + 3
    assert found.one_by_one > 14
    assert found.value_without is not None
    assert found.value_all is not None
    assert found.value_without < found.value_all
    run = RunDir(tmp_path / "run")
    assert run.read(BISECTION, Bisection) == found
    assert run.has(LOCK)
    assert run.has(REPORT)
    assert not list((tmp_path / "run" / "spill").rglob("*.bin"))


def test_a_culprit_is_found_among_units_that_lose_as_much_together(place: Place, tmp_path: Path) -> None:
    made = candidate(place, tmp_path / "made", {PLANTED[0][0]: wrong_scales})
    found = bisect(options(place, made, tmp_path / "run"))
    assert found.culprits == PLANTED[0]
    assert found.value_all is not None
    assert found.value_without is not None
    assert found.value_without > 0.7 * found.value_all  # 13 healthy units at 4 bits


@pytest.mark.parametrize("scheme", [SCHEME, FINE], ids=str)
def test_a_healthy_rounding_has_no_culprits(place: Place, scheme: Scheme, tmp_path: Path) -> None:
    found = bisect(options(place, candidate(place, tmp_path / "made", {}, scheme), tmp_path / "run"))
    assert found.culprits == ()
    assert found.evaluations == 2
    assert found.value_without == found.value_all is not None


def test_limits_of_kl_and_perplexity(place: Place, tmp_path: Path) -> None:
    (culprit,) = PLANTED[0]
    made = candidate(place, tmp_path / "made", {culprit: wrong_scales})
    healthy = bisect(options(place, made, tmp_path / "a")).value_without
    assert healthy is not None
    by_kl = bisect(options(place, made, tmp_path / "b", kl=1.2 * healthy))
    assert by_kl.culprits == (culprit,)
    assert by_kl.criterion == f"KL > {1.2 * healthy:g}, all other units being healthy"
    assert by_kl.value_without == healthy
    less = bisect(options(place, made, tmp_path / "less", kl=0.5 * healthy))
    assert less.criterion == f"KL > {0.5 * healthy:g}"
    assert all(step.bad == (step.value > 0.5 * healthy) for step in less.steps if step.value is not None)
    assert less.value_without is not None
    assert less.value_without <= 0.5 * healthy
    assert bisect(options(place, made, tmp_path / "c", kl=1e9)).culprits == ()
    whole = bisect(options(place, made, tmp_path / "d", perplexity=1e9)).value_without
    assert whole is not None
    assert whole > 100  # a perplexity: a model of noise over 202 words
    with pytest.raises(UsageError, match="one of them"):
        options(place, made, tmp_path / "e", kl=1.0, perplexity=2.0)


JUDGE = """
import sys
import numpy as np
from safetensors.numpy import load_file
from pathlib import Path
tensors = load_file(Path(sys.argv[1]) / "model.safetensors")
reference = load_file({reference!r})
def far(name):
    left, right = reference[name], tensors[name]
    return bool(np.linalg.norm(left - right) > 0.2 * np.linalg.norm(left))
sys.exit({verdict})
"""


def judge(place: Place, folder: Path, verdict: str) -> str:
    """A command that looks at the weights it is given."""
    reference = str(place.model / "model.safetensors")
    script = folder / "judge.py"
    script.write_text(JUDGE.format(reference=reference, verdict=verdict), encoding="utf-8")
    return f"'{sys.executable}' '{script}'"


def test_a_command_judges_an_interacting_pair(place: Place, tmp_path: Path) -> None:
    pair = PLANTED[1]
    made = candidate(place, tmp_path / "made", dict.fromkeys(pair, wrong_scales))
    both = " and ".join(f"far({name + '.weight'!r})" for name in pair)
    command = judge(place, tmp_path, f"1 if {both} else 0")
    found = bisect(options(place, made, tmp_path / "run", command=command))
    assert sorted(found.culprits) == sorted(pair)
    assert found.value_all is None
    assert not (tmp_path / "run" / "hybrid").exists()
    assert (tmp_path / "run" / "command.log").is_file()


def test_what_a_command_is_given_loads_in_transformers(place: Place, tmp_path: Path) -> None:
    (culprit,) = PLANTED[0]
    made = candidate(place, tmp_path / "made", {culprit: wrong_scales})
    keep = tmp_path / "kept"
    script = tmp_path / "keep.py"
    script.write_text(
        f"import shutil, sys; shutil.copytree(sys.argv[2], {str(keep)!r}, dirs_exist_ok=True); sys.exit(0)"
    )
    command = f"'{sys.executable}' '{script}' --model {{}}"
    assert bisect(options(place, made, tmp_path / "run", command=command)).culprits == ()
    whole = AutoModelForCausalLM.from_pretrained(keep)
    reference = AutoModelForCausalLM.from_pretrained(place.model)
    assert whole.dtype == reference.dtype == torch.float32
    expected = open_checkpoint(made).weights
    for name, value in whole.state_dict().items():
        assert torch.equal(value, expected.get(name).float())


def test_a_command_that_cannot_be_run_or_dies_ends_the_search(place: Place, tmp_path: Path) -> None:
    made = candidate(place, tmp_path / "made", {PLANTED[0][0]: half})
    with pytest.raises(UsageError, match="cannot be run"):
        bisect(options(place, made, tmp_path / "a", command="/nowhere/program"))
    dies = judge(place, tmp_path, "127")
    with pytest.raises(QuantriageError, match="ended with 127"):
        bisect(options(place, made, tmp_path / "b", command=dies))


def test_values_that_are_not_finite_are_culprits_without_a_question(place: Place, tmp_path: Path) -> None:
    broken = PLANTED[0][0]
    made = candidate(place, tmp_path / "made", {broken: lambda w: replace(w, scale=w.scale * float("nan"))})
    found = bisect(options(place, made, tmp_path / "run"))
    assert found.culprits == (broken,)
    assert found.value_all is None
    assert found.value_without is not None


def attribution(place: Place, made: Path, scratch: Path, seconds: float = 600.0) -> Attribution:
    opened = open_model(str(place.model))
    tokens = opened.tokens((place.held_out,), 16, 32, "evaluation")
    return attribute(opened, open_checkpoint(made), tokens, seconds, scratch, 1 << 30)


def test_attribution_names_the_damaged_site_first(place: Place, tmp_path: Path) -> None:
    (culprit,) = PLANTED[0]
    made = candidate(place, tmp_path / "made", {culprit: wrong_scales})
    found = attribution(place, made, tmp_path / "spill")
    first = found.units[0]
    assert (first.unit, first.judgement, first.layout) == (culprit, "damaged", "w4a-g32")
    assert first.relative_error == pytest.approx(0.4, abs=0.1)
    assert first.nearest_error is not None
    assert first.nearest_error < 0.12
    assert first.swap_kl is not None
    assert first.restore_gain is not None
    assert first.restore_gain == pytest.approx(first.swap_kl, rel=0.5)
    assert [u.unit for u in found.units if u.judgement == "damaged"] == [culprit]
    assert not found.truncated
    assert found.forwards < found.forwards_one_by_one * 2


def test_plain_rounding_of_a_healthy_model_is_not_called_damaged(place: Place, tmp_path: Path) -> None:
    found = attribution(place, candidate(place, tmp_path / "made", {}), tmp_path / "spill")
    assert {u.judgement for u in found.units} <= {"fine", "hard", "badly done"}
    assert found.additivity == pytest.approx(1.0, abs=0.4)
    for unit in found.units:
        if unit.judgement == "badly done":
            assert "rounded to nearest" in unit.reason
    sites = [u for u in found.units if u.predicted_kl is not None]
    assert len(sites) == 14
    assert all(u.noise_ratio is not None and 0.2 < u.noise_ratio < 5 for u in sites)
    best = [u for u in sites if u.optimal_kl is not None and u.predicted_kl is not None]
    assert 0 < len(best) <= 6
    assert all(u.optimal_kl <= u.predicted_kl for u in best)  # type: ignore[operator]


def test_attribution_of_a_model_to_itself(place: Place, tmp_path: Path) -> None:
    found = attribution(place, place.model, tmp_path / "spill")
    assert found.total_kl == 0.0
    assert found.additivity is None
    assert {u.judgement for u in found.units} == {"fine"}


def test_the_command_line_names_the_culprits(place: Place, tmp_path: Path) -> None:
    made = candidate(place, tmp_path / "made", {PLANTED[0][0]: wrong_scales})
    words = [
        "bisect",
        str(place.model),
        str(made),
        "--text",
        str(place.held_out),
        "--run",
        str(tmp_path / "r"),
    ]
    words += ["--sequences", "4", "--length", "32", "--quiet"]
    shown = CliRunner().invoke(application(), words)
    assert shown.exit_code == 0, shown.stderr
    assert f"- {PLANTED[0][0]}\n" in shown.stdout
    assert "one by one would take" in shown.stdout
    record = CliRunner().invoke(application(), [*words, "--json"]).stdout
    assert msgspec.json.decode(record, type=Bisection).culprits == PLANTED[0]
    assert json.loads((tmp_path / "r" / LOCK).read_text())["command"] == "bisect"
