"""A serving engine asked in its own environment, about a directory that quantriage exported and evaluated."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "engines"
TIMEOUT = 900  # seconds; an engine on two busy cores needs one to two minutes


@dataclass(frozen=True)
class Difference:
    """How an engine's log-probabilities differ from ours, in nats over all scored tokens."""

    largest: float
    mean: float  # of the absolute differences
    shift: float  # of the mean log-probability itself: what perplexity sees


def setting(name: str) -> Path:
    value = os.environ.get(name)
    if not value or not Path(value).exists():
        pytest.fail(f"{name} is {value!r}, expected an existing path; run `make test-engines`, which sets it")
    return Path(value)


def ask(script: str, dtype: str) -> Difference:
    """Run one script in the engines' environment on the exported directory and compare its answer."""
    exported, ours = setting("QUANTRIAGE_EXPORTED"), setting("QUANTRIAGE_LOGPROBS")
    command = [setting("QUANTRIAGE_ENGINE_PYTHON"), SCRIPTS / script, exported, ours, "--dtype", dtype]
    # Nothing of this environment's packages may reach the other one.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    finished = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=TIMEOUT, env=clean, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    theirs = torch.tensor(json.loads(finished.stdout)["logprobs"])
    return difference(torch.tensor(json.loads(ours.read_text())["logprobs"]), theirs)


def difference(ours: Tensor, theirs: Tensor) -> Difference:
    """Compare log-probabilities  # [sequences, length - 1]."""
    assert ours.shape == theirs.shape
    assert ours.numel() > 100, "too few tokens to say anything"
    gaps = (ours - theirs).abs()
    return Difference(gaps.max().item(), gaps.mean().item(), (ours - theirs).mean().item())
