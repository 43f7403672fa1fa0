"""Quantize a model with llm-compressor's GPTQ and record what it cost.

    ENV/bin/python benchmarks/peers/llm_compressor.py --model DIR --tokens FILE.npy --out DIR --json FILE

Runs in an environment with `llmcompressor==0.14.0` and imports nothing of quantriage. Everything that is not
the bit width, the group or the order of columns is llm-compressor's own default, so that the peer is
measured as its users run it. Thread counts are set before torch is imported: OpenMP reads them once.
Time is split into loading, quantizing and saving, since tools draw that line in different places.
"""

import argparse
import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    model: Path
    tokens: Path
    out: Path
    json: Path
    act_order: str
    bits: int
    group_size: int
    threads: int


@dataclass(frozen=True)
class Spent:
    """One phase's cost; CPU seconds are user and system time, children included."""

    wall_s: float
    cpu_s: float


class Clock:
    """Reads wall and CPU time between two marks."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), cpu_seconds()

    def lap(self) -> Spent:
        """The cost since the last mark, which moves here."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        spent = Spent(round(wall - self.wall, 2), round(cpu - self.cpu, 2))
        self.wall, self.cpu = wall, cpu
        return spent


def cpu_seconds() -> float:
    """User and system seconds of this process and its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_bytes() -> int:
    """Largest resident set of this process; Linux counts it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_options() -> Options:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="GPTQ by llm-compressor, measured.")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--tokens", type=Path, required=True, help="int64 [sequences, length], .npy")
    parser.add_argument("--out", type=Path, required=True, help="where the compressed checkpoint goes")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--act-order", choices=("static", "none"), default="static")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    return Options(**vars(parser.parse_args()))


def quantize(options: Options, model: Any, tokens: Any) -> None:
    """Run GPTQ on every linear layer but the head, in place; `tokens` is int64 [sequences, length]."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    weights = QuantizationArgs(
        num_bits=options.bits, strategy="group", group_size=options.group_size, symmetric=False
    )
    modifier = GPTQModifier(
        ignore=["lm_head"],
        config_groups={"linears": QuantizationScheme(targets=["Linear"], weights=weights)},
        actorder=None if options.act_order == "none" else options.act_order,
    )
    rows = {"input_ids": tokens.tolist(), "attention_mask": [[1] * tokens.shape[1]] * tokens.shape[0]}
    oneshot(
        model=model,
        dataset=Dataset.from_dict(rows),
        recipe=modifier,
        num_calibration_samples=tokens.shape[0],
        max_seq_length=tokens.shape[1],
        shuffle_calibration_samples=False,
    )


def main() -> None:
    """Load, quantize, save, and write the figures."""
    options = read_options()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    load_before = os.getloadavg()
    clock = Clock()
    import llmcompressor
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(options.threads)
    imported = clock.lap()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokens = np.load(options.tokens, allow_pickle=False)
    loaded = clock.lap()
    quantize(options, model, tokens)
    quantized = clock.lap()
    model.save_pretrained(options.out, save_compressed=True)
    tokenizer.save_pretrained(options.out)
    saved = clock.lap()
    figures = {
        "tool": f"llm-compressor {llmcompressor.__version__}",
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
        "options": {name: str(value) for name, value in asdict(options).items()},
        "tokens": list(tokens.shape),
        "import": asdict(imported),
        "load": asdict(loaded),
        "quantize": asdict(quantized),
        "save": asdict(saved),
        "peak_bytes": peak_bytes(),
        "load_average": {"before": load_before, "after": os.getloadavg()},
    }
    options.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
