"""Checkpoints that upstream tools wrote are sound in every format; a planted fault is found in each."""

from pathlib import Path

import gguf
import pytest
from planted import Fake
from safetensors.torch import load_file

from formats.golden_folders import GOLDEN
from formats.tiny_gguf import write
from quantriage.checkpoint.strict_json import read_object
from quantriage.diagnose.lint.examine import examine
from quantriage.diagnose.lint.structure import expected_parameters
from quantriage.diagnose.lint.subject import Subject
from quantriage.formats.checkpoint import open_checkpoint

Kind = gguf.GGMLQuantizationType
FOLDERS = sorted(path.name for path in GOLDEN.iterdir() if (path / "config.json").is_file())
MIXED_ON_PURPOSE = {"fused-mismatch"}  # the goldens have every width once


def subject(path: Path) -> Subject:
    opened = open_checkpoint(path)
    stored = {} if path.is_file() else read_object(path / "config.json").get("quantization_config", {})
    assert isinstance(stored, dict)
    return Subject(opened.weights, opened.kind, opened.config.to_dict(), stored)


@pytest.mark.parametrize("name", FOLDERS)
def test_what_upstream_tools_write_is_sound(name: str) -> None:
    folder = GOLDEN / name
    candidate = subject(folder)
    expected = expected_parameters(open_checkpoint(folder).config)
    found = examine(candidate, expected).findings
    assert [f for f in found if f.check not in MIXED_ON_PURPOSE] == []
    reference = Subject(Fake(load_file(folder / "expected.safetensors"), {}), "dense", candidate.settings)
    found = examine(candidate, expected, reference).findings
    assert [f for f in found if f.check not in MIXED_ON_PURPOSE] == []


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q5_1, Kind.Q8_0])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "qwen3moe"])
def test_gguf_block_types_are_sound(architecture: str, kind: Kind, tmp_path: Path) -> None:
    reference = subject(write(tmp_path / "reference.gguf", architecture))
    candidate = subject(write(tmp_path / "candidate.gguf", architecture, kind))
    assert examine(candidate, None, reference).findings == ()
    assert examine(candidate).findings == ()
