"""Ours against llm-compressor's GPTQ: time, CPU, memory and KL, one after the other in one run.

    python -m benchmarks.speed MODEL --calibration T --calibration T --evaluate T \\
        --peer-python ENV/bin/python --out FOLDER

Same windows, same scheme; a third row is ours with `--effort fast`, which draws half as many windows. Saved
directories are evaluated by `quantriage evaluate`, and by the plain transformers of the environment that
wrote them. Writes speed.json.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measured import Shape, judged, plain_transformers, timed, write_windows


def commands(arguments: argparse.Namespace, tokens: Path) -> dict[str, list[str]]:
    """What is timed."""
    out, model = arguments.out, arguments.model
    program = str(Path(sys.executable).parent / "quantriage")
    flags = [flag for text in arguments.calibration for flag in ("--calibration", str(text))]
    ours = [program, "quantize", model, "--scheme", "w4a-g64", *flags]
    return {
        "ours": [*ours, "--out", str(out / "ours")],
        "ours-fast": [*ours, "--effort", "fast", "--out", str(out / "ours-fast")],
        "llm-compressor": [
            arguments.peer_python,
            str(Path(__file__).parent / "peers" / "llm_compressor.py"),
            *("--model", model, "--tokens", str(tokens)),
            *("--out", str(out / "llm-compressor"), "--json", str(out / "peer.json")),
        ],
    }


def main() -> None:
    """Run both, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", type=Path, action="append", required=True)
    parser.add_argument("--evaluate", type=Path, action="append", required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--evaluation-length", type=int, default=1024)
    arguments = parser.parse_args()
    out, model, length = arguments.out, arguments.model, arguments.evaluation_length
    out.mkdir(parents=True, exist_ok=True)
    tokens, windows = out / "tokens.npy", out / "evaluation.npy"
    write_windows(model, arguments.calibration, Shape(128, 512), "calibration", tokens)
    rows: dict[str, dict[str, Any]] = {}

    def add(label: str, more: dict[str, Any]) -> None:
        rows[label] = rows.get(label, {}) | more
        print(label, json.dumps(rows[label]), flush=True)
        (out / "speed.json").write_text(json.dumps(rows, indent=1) + "\n")

    for label, command in commands(arguments, tokens).items():
        add(label, asdict(timed(command, out / f"{label}.log")))
    for label in rows:
        add(label, asdict(judged(model, out / label, arguments.evaluate, 16, length)))
    write_windows(model, arguments.evaluate, Shape(16, length), "evaluation", windows)
    for label in rows:
        python = arguments.peer_python if label == "llm-compressor" else sys.executable
        found = plain_transformers(python, model, out / label, windows)
        add(label, {"transformers_kl": found.kl, "transformers_perplexity": found.perplexity})


if __name__ == "__main__":
    main()
