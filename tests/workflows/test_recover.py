"""`recover` from model to proof, and killed at any moment."""

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_run import Place, digests, interrupt_at
from transformers import AutoModelForCausalLM

import quantriage
from quantriage.errors import BudgetError, ResumeError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.records.run_dir import (
    CORRELATIONS,
    DIAGNOSIS,
    LEARNING,
    LOCK,
    MIXES,
    PLAN,
    PROOF,
    QUANTIZED,
    REPORT,
    SENSITIVITY,
    SITES,
    SUMMARY,
    RunDir,
)
from quantriage.records.types import LearningPoint, Lock, MixMeasurement, Plan, Proof, RunSummary
from quantriage.workflows.evaluate import evaluate
from quantriage.workflows.opened import open_model
from quantriage.workflows.options import EvaluateOptions, PlanOptions, QuantizeOptions
from quantriage.workflows.plan import plan
from quantriage.workflows.quantize import quantize
from quantriage.workflows.recover import recover
from small_models import save


@pytest.fixture(scope="module")
def finished(place: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunSummary]:
    """An uninterrupted run: its export and its summary."""
    out = tmp_path_factory.mktemp("finished") / "out"
    return out, recover(place.recover(out))


def run_of(out: Path) -> RunDir:
    return RunDir.existing(out.with_name(out.name + ".run"))


def test_the_verdict_rests_on_the_measured_figures(finished: tuple[Path, RunSummary]) -> None:
    out, summary = finished
    verdict, proof = summary.verdict, run_of(out).read(PROOF, Proof)
    assert verdict is not None
    shipped = proof.results[-1]
    uniforms = [r for r in proof.results if r.kind == "uniform" and not r.label.endswith("RTN")]
    (rtn,) = (r for r in proof.results if r.label.endswith("RTN"))
    assert verdict.kl == shipped.kl.value
    assert verdict.best_uniform_kl == min(r.kl.value for r in uniforms)
    assert verdict.rtn_kl == rtn.kl.value
    # Four windows of 32 tokens on a random model: error feedback need not beat plain rounding here.
    assert verdict.proven == (shipped.kl.value <= min(r.kl.value for r in [*uniforms, rtn]))
    assert verdict.proven or shipped.label.removeprefix("shipped: ") in {r.label for r in uniforms}
    assert shipped.kl.value > 0
    assert all(r.bits_per_weight <= 4.6 for r in proof.results)


def test_every_record_is_written(finished: tuple[Path, RunSummary]) -> None:
    run = run_of(finished[0])
    names = (SUMMARY, PLAN, LOCK, SITES, SENSITIVITY, CORRELATIONS, DIAGNOSIS, MIXES, QUANTIZED, PROOF)
    assert all(run.has(name) for name in (*names, REPORT))
    assert run.read(SUMMARY, RunSummary) == finished[1]
    assert len(run.read(PLAN, Plan).assignments) == 14
    assert sum(m.chosen for m in run.read_many(MIXES, MixMeasurement)) == 1
    assert run.read(LOCK, Lock).output_files == digests(finished[0])
    assert not (run.path / "spill").exists()


def test_the_proofs_kl_is_that_of_the_whole_model_with_the_saved_weights(
    finished: tuple[Path, RunSummary], place: Place
) -> None:
    """Not through transformers' own loader: compressed-tensors 0.18 to 0.20 misread packed zero points."""
    weights = open_checkpoint(finished[0]).weights
    tokens = open_model(str(place.model)).tokens((place.held_out,), 4, 48, "evaluation").tokens
    original = AutoModelForCausalLM.from_pretrained(place.model)
    changed = AutoModelForCausalLM.from_pretrained(place.model)
    changed.load_state_dict({name: weights.get(name).float() for name in changed.state_dict()})
    with torch.no_grad():
        ours, theirs = (torch.log_softmax(m(tokens).logits.double(), dim=-1) for m in (changed, original))
    kl = float((theirs.exp() * (theirs - ours)).sum(dim=-1)[:, :-1].mean())
    assert finished[1].verdict is not None
    assert finished[1].verdict.kl == pytest.approx(kl, rel=1e-4)  # float32 logits on both sides


def test_transformers_loads_an_export_without_zero_points(place: Place, tmp_path: Path) -> None:
    quantize(place.quantize(tmp_path / "out", scheme="w4s-g32"))
    weights = open_checkpoint(tmp_path / "out").weights
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        found = loaded(torch.arange(40).unsqueeze(0)).logits
        dense = AutoModelForCausalLM.from_pretrained(place.model)
        dense.load_state_dict({name: weights.get(name).float() for name in dense.state_dict()})
        expected = dense(torch.arange(40).unsqueeze(0)).logits
    # upstream rounds each weight to the stored float16 once more: 2**-11 of weights of size one
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)


def test_evaluating_the_saved_directory_gives_the_proofs_figures(
    finished: tuple[Path, RunSummary], place: Place
) -> None:
    out, summary = finished
    options = EvaluateOptions(
        reference=str(place.model), candidate=str(out), text=(place.held_out,), sequences=4, length=48
    )
    (result,) = evaluate(options).results
    shipped = run_of(out).read(PROOF, Proof).results[-1]
    assert summary.verdict is not None
    assert result.kl == shipped.kl
    assert result.perplexity == shipped.perplexity
    assert result.digest == shipped.digest


def test_the_plan_of_a_run_carried_out_again_gives_the_same_checkpoint(
    finished: tuple[Path, RunSummary], place: Place, tmp_path: Path
) -> None:
    out, _ = finished
    again = place.recover(out)
    plan(PlanOptions(run=run_of(out).path, out=tmp_path / "plan.yaml"))
    options = QuantizeOptions(
        model=again.model,
        calibration=again.calibration,
        out=tmp_path / "again",
        plan=tmp_path / "plan.yaml",
        target="transformers",
        sequences=12,  # recover's calibration and selection windows in one draw
        length=32,
    )
    quantize(options)
    assert digests(tmp_path / "again").keys() == digests(out).keys()
    assert digests(tmp_path / "again")["config.json"] == digests(out)["config.json"]


KILLED = """
import pickle, sys
from pathlib import Path
from quantriage.workflows.recover import recover
recover(pickle.loads(Path(sys.argv[1]).read_bytes()))
"""


@pytest.mark.parametrize("lines", [2, 3, 4])
def test_a_killed_run_ends_in_the_same_bytes(
    finished: tuple[Path, RunSummary], place: Place, tmp_path: Path, lines: int
) -> None:
    options = place.recover(tmp_path / "out")
    (tmp_path / "options").write_bytes(pickle.dumps(options))
    ledger = options.run_folder / "ledger.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "options")],
        env=os.environ | {"PYTHONPATH": str(Path(quantriage.__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and (not ledger.exists() or ledger.read_bytes().count(b"\n") < lines):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(random.Random(lines).uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was not finished yet
    committed = ledger.read_bytes()
    recover(options)
    assert ledger.read_bytes().startswith(committed[: committed.rfind(b"\n") + 1])
    assert digests(options.out) == digests(finished[0])
    assert not [p for p in tmp_path.iterdir() if ".partial" in p.name]


def test_learned_scales_ship_and_resume(place: Place, tmp_path: Path) -> None:
    recover(place.recover(tmp_path / "whole", learn=4))
    measured = run_of(tmp_path / "whole").read_many(LEARNING, LearningPoint)
    assert [point.step for point in measured] == [0, 1, 2, 3, 4]
    summary = run_of(tmp_path / "whole").read(SUMMARY, RunSummary)
    assert any(f.code == "learned-scales" for f in summary.findings)

    options = place.recover(tmp_path / "resumed", learn=4)
    with pytest.raises(KeyboardInterrupt):
        recover(options, interrupt_at("learn scales", 3))
    assert (options.run_folder / "learned" / "state.safetensors").is_file()
    stages: list[tuple[str, int]] = []
    recover(options, lambda stage, done, total: stages.append((stage, done)))
    assert [done for stage, done in stages if stage == "learn scales"] == [3, 4]
    assert digests(options.out) == digests(tmp_path / "whole")


def test_a_changed_setting_does_not_resume(finished: tuple[Path, RunSummary], place: Place) -> None:
    out, _ = finished
    before = digests(out)
    with pytest.raises(ResumeError, match=r"bpw was 4\.6, now 4\.7"):
        recover(place.recover(out, bpw=4.7, replace=True))
    assert digests(out) == before


def test_a_model_that_cannot_be_stored_is_refused_before_any_work(place: Place, tmp_path: Path) -> None:
    save("gpt2", tmp_path / "gpt2", vocab_size=202)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "gpt2" / name).write_bytes((place.model / name).read_bytes())
    told: list[str] = []
    options = place.recover(tmp_path / "out", model=str(tmp_path / "gpt2"))
    with pytest.raises(BudgetError, match=r"transposed .*Conv1D"):
        recover(options, lambda stage, done, total: told.append(stage))
    assert told == []
    assert not options.out.exists()
