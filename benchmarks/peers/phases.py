"""What every peer's script shares: its arguments, and its cost split into import, load, quantize and save.

The scripts of this folder run in environments of their own, as `ENV/bin/python benchmarks/peers/NAME.py`;
they import this file as a neighbour and nothing of quantriage. Tools draw the line between loading,
quantizing and saving in different places, so each part is recorded beside the whole.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Spent:
    """One phase's cost; CPU seconds are user and system time, children included."""

    wall_s: float
    cpu_s: float


def cpu_seconds() -> float:
    """User and system seconds of this process and its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_bytes() -> int:
    """Largest resident set of this process; Linux counts it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peer_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that the driver gives to every peer."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--tokens", type=Path, required=True, help="int64 [sequences, length], .npy")
    parser.add_argument("--out", type=Path, required=True, help="where the checkpoint goes")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse, and set the number of threads before torch is imported: OpenMP reads it once."""
    given = parser.parse_args(arguments)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(given.threads)
    return given


class Phases:
    """Marks the end of each phase and writes the figures."""

    def __init__(self) -> None:
        self.load_before = os.getloadavg()
        self.spent: dict[str, Spent] = {}
        self.wall, self.cpu = time.perf_counter(), cpu_seconds()

    def end(self, phase: str) -> None:
        """Everything since the last mark was `phase`."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        self.spent[phase] = Spent(round(wall - self.wall, 2), round(cpu - self.cpu, 2))
        self.wall, self.cpu = wall, cpu

    def write(self, tool: str, given: argparse.Namespace, **more: Any) -> None:
        """The figures as JSON, where the driver asked for them. more: what only this peer has to say."""
        figures = {
            "tool": tool,
            "python": sys.version.split()[0],
            "options": {name: str(value) for name, value in vars(given).items()},
            **{phase: asdict(spent) for phase, spent in self.spent.items()},
            "peak_bytes": peak_bytes(),
            "load_average": {"before": self.load_before, "after": os.getloadavg()},
            **more,
        }
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


def grouped_bits(bits: float, group: int, symmetric: bool) -> float:
    """Per weight: codes, a 16-bit scale for each group, and a zero point as wide as a code."""
    return bits + (16 + (0 if symmetric else bits)) / group


def read_tokens(path: Path) -> Any:
    """The windows, int64 [sequences, length]."""
    import numpy as np

    return np.load(path, allow_pickle=False)


def copy_tokenizer(model: Path, out: Path) -> None:
    """The tokenizer's files as they are: an older transformers may not know the class that they name."""
    for pattern in ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "chat_template*"):
        for file in model.glob(pattern):
            shutil.copyfile(file, out / file.name)


def load_model(given: argparse.Namespace) -> tuple[Any, Any]:
    """The reference in float32 and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(given.threads)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(given.model)
