"""Ours against llm-compressor's GPTQ: time, CPU, memory and KL, one after the other in one run.

    python -m benchmarks.speed MODEL --calibration T --calibration T --evaluate T \\
        --peer-python ENV/bin/python --out FOLDER

Same windows, same scheme. Both saved directories are evaluated by `quantriage evaluate`, and by the plain
transformers of the environment that wrote them. Writes speed.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from quantriage.workflows.evaluate import evaluate
from quantriage.workflows.options import EvaluateOptions


def timed(command: list[str], log: Path) -> dict[str, float]:
    """Wall and CPU seconds and peak memory of one process, children included."""
    start = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} ended with {os.waitstatus_to_exitcode(status)}; see {log}")
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory_bytes": usage.ru_maxrss * 1024,
    }


def judged(reference: str, candidate: Path, text: tuple[Path, ...], length: int) -> dict[str, float]:
    """KL, perplexity and size of a saved directory under our evaluation."""
    options = EvaluateOptions(reference=reference, candidate=str(candidate), text=text, length=length)
    result = evaluate(options).results[-1]
    return {
        "kl": result.kl.value,
        "perplexity": result.perplexity.value,
        "top1_agreement": result.top1_agreement.value,
        "bits_per_weight": result.bits_per_weight,
    }


def plain_transformers(python: str, reference: str, candidate: Path, tokens: Path) -> dict[str, float]:
    """KL and perplexity of a saved directory as the transformers of `python` loads it."""
    script = Path(__file__).parent / "engines" / "transformers_kl.py"
    command = [python, str(script), reference, str(candidate), str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    figures = json.loads(done.stdout.splitlines()[-1])
    return {f"transformers_{name}": figures[name] for name in ("kl", "perplexity")}


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
    out, model = arguments.out, arguments.model
    out.mkdir(parents=True, exist_ok=True)
    texts = [str(path) for path in arguments.calibration]
    tokens = out / "tokens.npy"
    here = [sys.executable, "-m", "benchmarks.calibration_tokens"]
    subprocess.run([*here, "--model", model, "--out", str(tokens), *texts], check=True)
    program = str(Path(sys.executable).parent / "quantriage")
    flags = [flag for text in texts for flag in ("--calibration", text)]
    commands = {
        "ours": [program, "quantize", model, "--scheme", "w4a-g64", *flags, "--out", str(out / "ours")],
        "llm-compressor": [
            arguments.peer_python,
            str(Path(__file__).parent / "peers" / "llm_compressor.py"),
            *("--model", model, "--tokens", str(tokens)),
            *("--out", str(out / "llm-compressor"), "--json", str(out / "peer.json")),
        ],
    }
    rows = {}
    for label, command in commands.items():
        rows[label] = timed(command, out / f"{label}.log")
        print(label, json.dumps(rows[label]), flush=True)
    for label in commands:
        rows[label] |= judged(model, out / label, tuple(arguments.evaluate), arguments.evaluation_length)
        print(label, json.dumps(rows[label]), flush=True)
    (out / "speed.json").write_text(json.dumps(rows, indent=1) + "\n")
    windows = out / "evaluation.npy"
    shape = ["--sequences", "16", "--length", str(arguments.evaluation_length), "--role", "evaluation"]
    evaluated = [str(path) for path in arguments.evaluate]
    subprocess.run([*here, "--model", model, "--out", str(windows), *shape, *evaluated], check=True)
    for label, python in (("ours", sys.executable), ("llm-compressor", arguments.peer_python)):
        rows[label] |= plain_transformers(python, model, out / label, windows)
        print(label, json.dumps(rows[label]), flush=True)
    (out / "speed.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
