"""The three-way split on a tiny model: a fault planted in one of the three is found there and only there."""

import json
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import Place
from torch import Tensor
from typer.testing import CliRunner

from cli.word_model import WORDS
from quantriage.cli.app import application
from quantriage.errors import DataError, UsageError
from quantriage.evaluate.engines.protocol import EngineQuestion
from quantriage.evaluate.engines.transformers import transformers_engine
from quantriage.records.diagnosis import Split, SplitLeg
from quantriage.records.run_dir import LOCK, REPORT, SPLIT, RunDir
from quantriage.records.types import Lock
from quantriage.workflows.compare import compare
from quantriage.workflows.opened import open_model
from quantriage.workflows.options import CompareOptions
from quantriage.workflows.quantize import quantize

SCHEME = "w4a-g32"

# Plays the Python of an engine's environment: answers with log-probabilities found beforehand, changed.
FAKE_PYTHON = """#!{python}
import json, math, sys
request = json.load(open(sys.argv[2]))
rows = json.load(open({known!r}))[request["model"]]
rows = [[x{change} for i, x in enumerate(row)] for row in rows]
json.dump({{"engine": "fake 1", "dtype": "float32", "logprobs": rows}}, open(sys.argv[3], "w"))
"""


@pytest.fixture(scope="session")
def packed(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A healthy candidate, rounded to nearest; read only."""
    out = tmp_path_factory.mktemp("packed") / "candidate"
    quantize(place.quantize(out, scheme=SCHEME, method="rtn"))
    return out


def asked(place: Place, candidate: Path, **changes: object) -> CompareOptions:
    given = {"reference": str(place.model), "candidate": str(candidate), "text": (place.held_out,)}
    return CompareOptions(**given | {"sequences": 6, "length": 32} | changes)  # type: ignore[arg-type]


def legs(split: Split, part: str) -> list[SplitLeg]:
    return [leg for leg in split.legs if leg.part == part]


def edited(source: Path, folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    copy = Path(shutil.copytree(source, folder))
    (file,) = copy.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return copy


def fake_python(place: Place, candidate: Path, folder: Path, change: str = "") -> Path:
    """An engine that is right about the windows that `asked` takes, but for `change`."""
    tokens = open_model(str(place.model)).tokens((place.held_out,), 6, 32, "evaluation").tokens
    known = {}
    for model in (place.model, candidate):
        answer = transformers_engine(None, 0.0).ask(EngineQuestion(model, "dense", tokens, "float32"))
        known[str(model)] = answer.logprobs.tolist()
    (folder / "known.json").write_text(json.dumps(known))
    path = folder / "python"
    where = str(folder / "known.json")
    path.write_text(FAKE_PYTHON.format(python=sys.executable, known=where, change=change))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_healthy_candidate_loses_what_its_bits_cost(place: Place, packed: Path, tmp_path: Path) -> None:
    split = compare(asked(place, packed, run=tmp_path / "run", engine_dtype="float32"))
    assert split.carrier == "none", split.sentence
    assert all(guard.holds for guard in split.guards)
    (weights,), (runtime,) = legs(split, "weights"), legs(split, "runtime")
    assert weights.kl is not None
    assert weights.explained_kl is not None
    assert weights.kl.value > 0.01
    # The candidate is plain rounding, so what explains its loss is its loss; its scales are in float16.
    assert weights.kl.value == pytest.approx(weights.explained_kl, rel=0.02)
    assert weights.tokens == 6 * 31
    # transformers' own path does the same arithmetic on the same weights, and so gives the same KL.
    assert runtime.mean_difference is not None
    assert runtime.mean_difference.value < 1e-4
    assert runtime.kl is not None
    assert runtime.kl.value == pytest.approx(weights.kl.value, rel=1e-3)
    assert runtime.noise_floor is not None
    assert runtime.noise_floor < 1e-5
    run = RunDir(tmp_path / "run")
    assert run.read(SPLIT, Split) == split
    assert run.read(LOCK, Lock).command == "compare"
    assert run.has(REPORT)


def test_damaged_weights_are_blamed_and_the_engine_is_not(place: Place, packed: Path, tmp_path: Path) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.mlp.down_proj.weight_scale"] *= 3

    split = compare(asked(place, edited(packed, tmp_path / "damaged", damage), engine_dtype="float32"))
    assert split.carrier == "weights", split.sentence
    (runtime,) = legs(split, "runtime")
    assert runtime.mean_difference is not None
    assert runtime.mean_difference.value < 1e-3


def test_the_candidates_own_dtype_is_noise(place: Place, packed: Path) -> None:
    split = compare(asked(place, packed))  # stored in float16, and so run in it
    (runtime,) = legs(split, "runtime")
    assert split.carrier == "none", split.sentence
    assert runtime.engine.endswith(", float16")
    assert runtime.mean_difference is not None
    assert runtime.noise_floor is not None
    assert 1e-4 < runtime.mean_difference.value < 3 * runtime.noise_floor


@pytest.mark.parametrize(
    "option",
    [
        "rope_parameters.rope_theta=20",
        "rms_norm_eps=1.0",
        "hidden_act=relu",
    ],
)
def test_an_engines_wrong_setting_is_the_runtime(place: Place, packed: Path, option: str) -> None:
    split = compare(asked(place, packed, engine_option=(option,)))
    assert split.carrier == "runtime", split.sentence
    assert "not to blame" in split.sentence
    (weights,), (runtime,) = legs(split, "weights"), legs(split, "runtime")
    assert weights.kl is not None
    assert weights.explained_kl is not None
    assert weights.kl.value == pytest.approx(weights.explained_kl, rel=0.02)
    assert runtime.mean_difference is not None
    assert runtime.mean_difference.value > 0.05


def test_the_files_own_wrong_setting_is_found_without_an_engine(
    place: Place, packed: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(packed, tmp_path / "wrong"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1.0}))
    split = compare(asked(place, copy, engine=("none",)))
    assert split.carrier == "runtime", split.sentence
    assert "rms_norm_eps" in split.sentence
    # With an engine: it is compared with the file as it says it is, and is not blamed for the setting.
    both = compare(asked(place, copy))
    settings, engine = legs(both, "runtime")
    assert settings.mean_difference is not None
    assert engine.mean_difference is not None
    assert settings.mean_difference.value > 0.05
    assert engine.mean_difference.value < 1e-3


@pytest.mark.parametrize(
    ("change", "carrier"),
    [("", "none"), (" + 0.2 * (-1) ** i", "runtime"), (" if i else math.nan", "runtime")],
)
def test_an_engine_outside_that_changes_logits_is_the_runtime(
    place: Place, packed: Path, tmp_path: Path, change: str, carrier: str
) -> None:
    python = fake_python(place, packed, tmp_path, change)
    split = compare(asked(place, packed, engine=("vllm",), engine_python=(str(python),)))
    assert split.carrier == carrier, split.sentence
    # It does the same to the reference, which must not raise the floor that it is held against.
    (runtime,) = legs(split, "runtime")
    assert runtime.noise_floor is not None
    assert runtime.noise_floor < 1e-3
    assert any(g.check == "engine vllm" for g in split.guards) == bool(change)
    if "(-1)" in change:  # up and down in turn: perplexity does not see it
        assert runtime.nll_shift is not None
        assert runtime.mean_difference is not None
        assert abs(runtime.nll_shift.value) < 0.05 * runtime.mean_difference.value


def test_an_engine_that_fails_is_a_finding_and_the_other_legs_stay(
    place: Place, packed: Path, tmp_path: Path
) -> None:
    python = fake_python(place, packed, tmp_path, " + nonsense")
    split = compare(asked(place, packed, engine=("vllm", "transformers"), engine_python=(f"vllm={python}",)))
    assert split.carrier == "none"
    assert [leg.part for leg in split.legs] == ["weights", "runtime"]
    first = split.guards[0]
    assert first.check == "engine vllm"
    assert not first.holds
    assert "nonsense" in first.evidence


def test_prompts_that_lose_more_are_the_data(place: Place, tmp_path: Path) -> None:
    # Errors of the embedding rows that only the prompts use: calibration text would not have shown them.
    rare = WORDS[150:]

    def damage(tensors: dict[str, Tensor]) -> None:
        noise = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
        tensors["model.embed_tokens.weight"][150:200] += 0.6 * noise

    candidate = edited(place.model, tmp_path / "candidate", damage)
    common = tmp_path / "common.txt"
    common.write_text(" ".join(WORDS[i * 7 % 150] for i in range(600)))
    alike, other = tmp_path / "alike.txt", tmp_path / "other.jsonl"
    alike.write_text(" ".join(WORDS[i * 11 % 150] for i in range(600)))
    other.write_text("\n".join(json.dumps({"text": " ".join(rare[i:] + rare[:i])}) for i in range(10)))
    options = {"text": (common,), "engine": ("none",)}
    split = compare(asked(place, candidate, prompts=(alike, other), **options))
    assert split.carrier == "data", split.sentence
    assert "other.jsonl" in split.sentence
    assert [leg.label for leg in legs(split, "data")] == ["alike.txt", "other.jsonl"]
    assert compare(asked(place, candidate, prompts=(alike,), **options)).carrier == "none"


def test_other_tokens_end_the_comparison(place: Place, packed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["w0"], vocabulary["w1"] = vocabulary["w1"], vocabulary["w0"]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    split = compare(asked(place, copy))
    assert split.carrier == "not comparable"
    assert not split.legs
    assert {g.check for g in split.guards if not g.holds} == {"tokenizer", "tokens"}


def test_requests_that_cannot_be_met_are_refused_before_any_work(
    place: Place, packed: Path, tmp_path: Path
) -> None:
    for wrong, said in (
        ({"engine": ("vllm",)}, "--engine-python"),
        ({"engine": ("tensorrt",)}, "expected one of transformers"),
        ({"engine": ("llama.cpp",), "engine_python": ("python",)}, "GGUF"),
        ({"engine_dtype": "int8"}, "expected one of auto"),
        ({"engine_option": ("rope_theta",)}, "NAME=VALUE"),
    ):
        with pytest.raises(UsageError, match=said):
            compare(asked(place, packed, **wrong))
    few = tmp_path / "few.txt"
    few.write_text("w1 w2 w3 " * 10)
    with pytest.raises(DataError, match="--length 15"):
        compare(asked(place, packed, prompts=(few,), engine=("none",)))


def test_the_command_prints_the_legs_and_the_verdict(place: Place, packed: Path) -> None:
    start = ["compare", str(place.model), str(packed), "--text", str(place.held_out), "--quiet"]
    small = ["--sequences", "4", "--length", "32"]
    done = CliRunner().invoke(application(), [*start, *small])
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("weights: the text (quantriage float32, 124 tokens); KL 0.")
    assert lines[1].startswith("runtime: the same file in transformers (transformers ")
    assert lines[-1].startswith("none: ")
    as_json = CliRunner().invoke(application(), [*start, *small, "--engine", "none", "--json"])
    assert msgspec.json.decode(as_json.stdout, type=Split).carrier == "none"
