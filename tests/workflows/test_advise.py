"""`advise` through the command line: a record, a report, measured figures by digest, and what it refuses."""

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from formats.tiny_llama import save_dense
from quantriage.cli.app import application
from quantriage.errors import QuantriageError, UsageError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.records.advice import Advice
from quantriage.records.lock import make_lock
from quantriage.records.run_dir import ADVICE, BENCH, LOCK, PROOF, REPORT, RunDir
from quantriage.records.types import EvalResult, Hardware, Interval, Proof, SequenceScores
from report.synthetic_bench import bench_of

HARDWARE = Hardware(cpu="", cores=1, memory_bytes=1, device="cpu", compute_dtype="", dtype_reason="")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense(tmp_path_factory.mktemp("advise") / "tiny")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(application(), [str(a) for a in arguments])


def point(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)


def proof_run(folder: Path, digest: str) -> Path:
    """A run that measured w4a-g32 on the model of that digest."""
    result = EvalResult(
        label="w4a-g32",
        kind="uniform",
        bits_per_weight=4.625,
        body_bytes=35520,
        file_bytes=None,
        tokens=100,
        perplexity=point(20.4),
        kl=point(0.02),
        kl_percentiles={},
        top1_agreement=point(0.9),
        flips=0.1,
        sequences=SequenceScores(kl=(0.02,), nll=(3.0,), reference_nll=(2.9,), agreement=(0.9,)),
    )
    run = RunDir(folder)
    proof = Proof(
        reference_perplexity=point(20.0), results=(result,), comparisons=(), noise_floor=(), tokens_digest=""
    )
    run.write(PROOF, proof)
    lock = make_lock(
        command="evaluate",
        model_source="",
        model_digest=digest,
        data=[],
        seed=0,
        settings={},
        hardware=HARDWARE,
    )
    run.write(LOCK, lock)
    return folder


def test_a_record_a_report_and_one_json_document(model: Path, tmp_path: Path) -> None:
    start = ("advise", model, "--memory-gb", 1, "--quality", "smallest", "--context", 100)
    done = invoke(*start, "--run", tmp_path / "run", "--json", "--quiet")
    assert done.exit_code == 0, done.stderr
    found = msgspec.json.decode(done.stdout, type=Advice)
    assert found == RunDir(tmp_path / "run").read(ADVICE, Advice)
    assert (tmp_path / "run" / REPORT).is_file()
    by_id = {(one.id, one.engine): one for one in found.strategies}
    assert by_id["w4-g32", "vllm"].total_bytes == 52544 + 25600  # by hand in tests/plan/test_advice.py
    shown = invoke(*start)
    assert "note: memory is weights" in shown.stdout
    assert "not: FP8 weights and activations, vllm: no source says" in shown.stdout


def test_a_run_about_this_model_is_measured_and_one_about_another_is_not_used(
    model: Path, tmp_path: Path
) -> None:
    mine = proof_run(tmp_path / "mine", open_checkpoint(model).digest())
    other = proof_run(tmp_path / "other", "another")
    done = invoke("advise", model, "--memory-gb", 1, "--json", "--quiet", "--runs", mine, "--runs", other)
    found = msgspec.json.decode(done.stdout, type=Advice)
    by_id = {(one.id, one.engine): one for one in found.strategies}
    quality = by_id["w4-g32", "vllm"].quality
    assert (quality.basis, quality.value, quality.source) == ("measured", 0.02, str(mine))
    assert "perplexity 1.020 times" in quality.text
    assert any(note == f"not used, about another model: {other}" for note in found.notes)


def test_a_speed_of_a_cpu_says_nothing_of_a_gpu(model: Path, tmp_path: Path) -> None:
    digest = open_checkpoint(model).digest()
    bench = bench_of()
    entries = tuple(msgspec.structs.replace(one, digest=digest) for one in bench.entries)
    RunDir(tmp_path / "bench").write(BENCH, msgspec.structs.replace(bench, entries=entries))

    def notes(hardware: str) -> str:
        start = ("advise", model, "--memory-gb", 1, "--quality", "smallest", "--runs", tmp_path / "bench")
        done = invoke(*start, "--hardware", hardware, "--json", "--quiet")
        return " ".join(msgspec.json.decode(done.stdout, type=Advice).notes)

    assert "not used, timed on cpu, hopper is asked for" in notes("hopper")
    assert "not used" not in notes("cpu")
    # 465 MB at the most, with weights of 60 MB in memory
    assert "to need beyond the weights is counted: transformers 405 MB" in notes("cpu")
    reserving = tuple(msgspec.structs.replace(one, engine="vllm") for one in entries)
    RunDir(tmp_path / "bench").write(BENCH, msgspec.structs.replace(bench, entries=reserving))
    assert "to need beyond the weights is counted: vllm 250 MB" in notes("cpu")


def test_of_ways_that_the_engine_does_not_run_only_the_number_is_printed(model: Path) -> None:
    shown = invoke("advise", model, "--memory-gb", 1, "--engine", "llama.cpp", "--context", 100).stdout
    assert "vllm:" not in shown
    assert "ways that llama.cpp does not run" in shown


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--memory-gb", 0), "--memory-gb"),
        (("--memory-gb", 1, "--hardware", "gpu"), "expected one of cpu, turing"),
        (("--memory-gb", 1, "--quality", "best"), "expected one of near-lossless"),
        (("--memory-gb", 1, "--engine", "tgi"), "expected one of any, vllm"),
        (("--memory-gb", 1, "--priority", "speed"), "--priority speed"),
        (("--memory-gb", 1, "--max-kl", -1), "--max-kl"),
        (("--memory-gb", 1, "--max-perplexity-ratio", 0.5), "--max-perplexity-ratio"),
        (("--memory-gb", 1, "--context", 0), "--context 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(model: Path, flags: tuple[object, ...], said: str) -> None:
    done = invoke("advise", model, *flags)
    assert done.exit_code == UsageError.exit_code
    assert said in done.stderr


def test_a_folder_that_measured_nothing_is_refused(model: Path, tmp_path: Path) -> None:
    done = invoke("advise", model, "--memory-gb", 1, "--runs", tmp_path)
    assert done.exit_code == QuantriageError.exit_code
    assert "neither proof.json nor bench.json" in done.stderr
