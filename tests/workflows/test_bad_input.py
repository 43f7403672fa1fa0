"""What strangers' files and full disks do: one line on stderr, the right exit code, nothing half written."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import Place
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from quantriage.cli.app import application
from quantriage.errors import (
    BudgetError,
    CheckpointError,
    DataError,
    QuantriageError,
    StorageError,
    UsageError,
)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SMALL = ("--length", "32", "--target", "transformers", "--quiet")


@pytest.fixture
def mine(place: Place, tmp_path: Path) -> Place:
    """A copy of the model and texts that a test may damage."""
    shutil.copytree(place.folder, tmp_path / "mine")
    return Place(tmp_path / "mine")


def refused(kind: type[QuantriageError], *arguments: object, out: Path) -> str:
    """Run the command line; check exit code, one line, no traceback, nothing left at `out`; that line."""
    before = sorted(out.iterdir()) if out.exists() else None
    done = CliRunner().invoke(application(), [str(a) for a in arguments])
    assert done.exit_code == kind.exit_code, done.output
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert (sorted(out.iterdir()) if out.exists() else None) == before
    assert not [p for p in out.parent.iterdir() if ".partial" in p.name]
    return line


def quantize(place: Place, *extra: object) -> tuple[object, ...]:
    start = ("quantize", place.model, "--calibration", place.calibration, "--out", place.folder / "out")
    return (*start, "--scheme", "w4a-g32", "--method", "rtn", "--sequences", 4, *SMALL, *extra)


def recover(place: Place, *extra: object) -> tuple[object, ...]:
    texts = ("--calibration", place.calibration, "--evaluate", place.held_out)
    sizes = ("--sequences", 4, "--selection-sequences", 2, "--evaluation-sequences", 2)
    start = ("recover", place.model, *texts, "--out", place.folder / "out")
    return (*start, *sizes, "--evaluation-length", 32, *SMALL, *extra)


# -- weights


def shard(place: Place) -> list[Path]:
    """Store the model again in several shards."""
    model = AutoModelForCausalLM.from_pretrained(place.model)
    (place.model / SINGLE).unlink()
    model.save_pretrained(place.model, max_shard_size="100KB")
    shards = sorted(place.model.glob("model-*.safetensors"))
    assert len(shards) > 1
    return shards


def missing_shard(place: Place) -> str:
    path = shard(place)[1]
    path.unlink()
    return path.name


def truncated_shard(place: Place) -> str:
    path = shard(place)[0]
    path.write_bytes(path.read_bytes()[:-100])
    return path.name


def truncated_header(place: Place) -> str:
    path = place.model / SINGLE
    path.write_bytes(path.read_bytes()[:20])
    return "header claims"


def lying_header_length(place: Place) -> str:
    path = place.model / SINGLE
    path.write_bytes((1 << 62).to_bytes(8, "little") + path.read_bytes()[8:])
    return "header claims"


def lying_tensor_size(place: Place) -> str:
    path = place.model / SINGLE
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["lm_head.weight"]["shape"] = [1 << 30, 1 << 20]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return "'lm_head.weight'"


def index_outside(place: Place) -> str:
    shutil.move(shard(place)[0], place.folder / "elsewhere.safetensors")
    index = json.loads((place.model / INDEX).read_text())
    name = min(index["weight_map"])
    index["weight_map"][name] = "../elsewhere.safetensors"
    (place.model / INDEX).write_text(json.dumps(index))
    return "points outside"


def pickled(place: Place) -> str:
    torch.save(load_file(place.model / SINGLE), place.model / "pytorch_model.bin")
    (place.model / SINGLE).unlink()
    return "save_pretrained(NEW) writes safetensors"


def lost_config(place: Place) -> str:
    (place.model / "config.json").unlink()
    return "config.json"


def unknown_architecture(place: Place) -> str:
    path = place.model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "nosuchmodel"}))
    return "nosuchmodel"


def remote_code(place: Place) -> str:
    path = place.model / "config.json"
    changed = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    (place.model / "mine.py").write_text(f"open({str(place.folder / 'ran')!r}, 'w')\n")
    return "config.json"


@pytest.mark.parametrize(
    "damage",
    [
        missing_shard,
        truncated_shard,
        truncated_header,
        lying_header_length,
        lying_tensor_size,
        index_outside,
        pickled,
        lost_config,
        unknown_architecture,
        remote_code,
    ],
)
def test_a_damaged_checkpoint(mine: Place, damage: Callable[[Place], str]) -> None:
    told = damage(mine)
    assert told in refused(CheckpointError, *quantize(mine), out=mine.folder / "out")
    assert not (mine.folder / "ran").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_a_weight_that_is_not_finite(mine: Place, value: float, name: str) -> None:
    tensors = load_file(mine.model / SINGLE)
    tensors[name][0, 0] = value
    save_file(tensors, mine.model / SINGLE, metadata={"format": "pt"})
    line = refused(CheckpointError, *quantize(mine, "--method", "gptq"), out=mine.folder / "out")
    assert f"{name}: 1 NaN or infinite" in line


# -- text


def test_a_tokenizer_of_another_model(mine: Place) -> None:
    path = mine.model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["stranger"] = 5000
    path.write_text(json.dumps(content))
    line = refused(DataError, *quantize(mine), out=mine.folder / "out")
    assert "5000" in line
    assert "202" in line


def test_a_checkpoint_without_a_tokenizer(mine: Place) -> None:
    for path in mine.model.glob("tokenizer*"):
        path.unlink()
    assert "no tokenizer" in refused(CheckpointError, *quantize(mine), out=mine.folder / "out")


def test_too_little_text(mine: Place) -> None:
    line = refused(DataError, *quantize(mine, "--sequences", 1000), out=mine.folder / "out")
    assert "3600 tokens found" in line


def test_a_text_that_is_not_there(mine: Place) -> None:
    mine.calibration.unlink()
    line = refused(DataError, *quantize(mine), out=mine.folder / "out")
    assert mine.calibration.name in line


def test_calibration_text_that_is_evaluation_text(mine: Place) -> None:
    shutil.copy(mine.calibration, mine.held_out)
    assert "same content" in refused(DataError, *recover(mine), out=mine.folder / "out")


def test_calibration_text_that_holds_evaluation_text(mine: Place) -> None:
    lines = mine.calibration.read_text().splitlines(keepends=True)
    mine.held_out.write_text("".join(lines[20:60]))
    mine.calibration.write_text("".join(lines[:80]))
    line = refused(DataError, *recover(mine, "--sequences", 3, "--length", 160), out=mine.folder / "out")
    assert "overlap" in line


# -- budgets and places


def test_a_budget_below_the_smallest_entry(mine: Place) -> None:
    line = refused(BudgetError, *recover(mine, "--bpw", "1.5"), out=mine.folder / "out")
    assert "1.500" in line
    assert "smallest" in line


def test_a_budget_above_the_largest_entry(mine: Place) -> None:
    line = refused(BudgetError, *recover(mine, "--bpw", "20"), out=mine.folder / "out")
    assert "full precision fits" in line


@pytest.mark.parametrize("bpw", ["0", "-1", "nan", "inf"])
def test_a_budget_that_is_none(mine: Place, bpw: str) -> None:
    refused(BudgetError, *recover(mine, "--bpw", bpw), out=mine.folder / "out")


def test_an_unknown_target(mine: Place) -> None:
    line = refused(UsageError, *recover(mine, "--target", "toaster"), out=mine.folder / "out")
    assert "toaster" in line


def test_an_output_folder_that_is_not_empty(mine: Place) -> None:
    out = mine.folder / "out"
    out.mkdir()
    (out / "precious").write_text("keep me")
    for command in (quantize(mine), recover(mine)):
        assert "not empty" in refused(StorageError, *command, out=out)
    assert (out / "precious").read_text() == "keep me"


def test_a_full_disk_during_export(mine: Place) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Larger than every file of the run folder, smaller than the checkpoint: the system then refuses to write
    # as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        line = refused(StorageError, *quantize(mine), out=mine.folder / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "out" in line
    assert "space" in line
    done = CliRunner().invoke(application(), [str(a) for a in quantize(mine)])
    assert done.exit_code == 0, done.stderr  # with room again, the same command goes on
