"""`bench` with real transformers on pico models, and what it refuses."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from formats.tiny_llama import save_dense, save_packed
from quantriage.cli.app import application
from quantriage.errors import EngineError, UsageError
from quantriage.numerics.schemes import Scheme
from quantriage.records.bench import Bench
from quantriage.records.run_dir import BENCH, LOCK, REPORT, RunDir
from quantriage.workflows.bench import bench
from quantriage.workflows.bench_options import BenchOptions

SHORT = {"prompt": 8, "new": 4, "rounds": 3, "warmup": 1, "threads": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An unquantized pico llama and the same with its blocks in 4 bits."""
    folder = tmp_path_factory.mktemp("models")
    dense = save_dense(folder / "dense")
    save_packed(folder / "packed", lambda name: Scheme.parse("w4a-g32"))
    return dense, folder / "packed"


def options(models: tuple[Path, Path], **changes: object) -> BenchOptions:
    given: dict[str, object] = {"checkpoints": (str(models[1]),), "reference": (str(models[0]),)}
    return BenchOptions(**given | SHORT | changes)  # type: ignore[arg-type]


def test_two_real_engines_in_turn_leave_a_record_and_a_report(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    found = bench(options(models, run=tmp_path / "run"))
    assert found == RunDir(tmp_path / "run").read(BENCH, Bench)
    assert RunDir(tmp_path / "run").has(LOCK)
    assert (tmp_path / "run" / REPORT).is_file()
    dense, packed = found.entries
    assert (dense.reference, dense.layout, packed.reference, packed.layout) == (
        True,
        "dense",
        False,
        "w4a-g32",
    )
    assert [len(one.rounds) for one in found.entries] == [3, 3]
    (comparison,) = found.comparisons
    assert comparison.same_engine
    # transformers decompresses compressed-tensors when it loads: all weights, and scales beside them
    assert packed.weight_bytes is not None
    assert dense.weight_bytes is not None
    assert dense.weight_bytes <= packed.weight_bytes < 1.1 * dense.weight_bytes
    if "slower" in (comparison.decode_outcome, comparison.prefill_outcome):
        assert "decompressed-on-load" in [reason.code for reason in comparison.reasons]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reference": ()}, "no unquantized model"),
        ({"engine": ("vlm",)}, "--engine vlm: unknown"),
        ({"engine": ("vllm",)}, "environment of its own"),
        ({"engine": ("llama.cpp",), "engine_python": (sys.executable,)}, "llama.cpp reads GGUF"),
        ({"dtype": "int4"}, "--dtype int4"),
        ({"prompt": 4000}, "the model takes 2048"),
        ({"rounds": 1}, "--rounds 1"),
        ({"new": 0}, "--new 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_an_engine_starts(
    models: tuple[Path, Path], changes: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        bench(options(models, **changes))


def test_an_environment_without_the_engine_is_an_error_that_quotes_it(models: tuple[Path, Path]) -> None:
    with pytest.raises(
        EngineError, match=r"(?s)no engine ran a checkpoint.*No module named 'xllamacpp|vllm'"
    ):
        bench(options(models, engine=("vllm",), engine_python=(sys.executable,)))


def test_the_command_has_its_flags() -> None:
    shown = CliRunner().invoke(application(), ["bench", "--help"])
    assert shown.exit_code == 0
    assert all(flag in shown.stdout for flag in ("CHECKPOINTS", "--reference", "--engine", "--rounds"))
