"""KL and perplexity of plain rounding, plain GPTQ, ours and `recover`, on one reference model.

    python -m benchmarks.quality MODEL --calibration T --calibration T --evaluate T --out FOLDER

Every candidate is exported and the saved directory is evaluated, on identical tokens. Writes quality.json.
"""

import argparse
import json
import resource
import time
from pathlib import Path

from quantriage.workflows.evaluate import evaluate
from quantriage.workflows.options import EvaluateOptions, QuantizeOptions, RecoverOptions
from quantriage.workflows.quantize import quantize
from quantriage.workflows.recover import recover

METHODS = ("rtn", "gptq-plain", "gptq-unweighted", "gptq-one-sided", "gptq")


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """One row for each method at the uniform scheme, and one for `recover`."""
    calibration, text = tuple(arguments.calibration), tuple(arguments.evaluate)
    rows: list[dict[str, object]] = []
    for method in arguments.methods:
        out = arguments.out / method
        start, cpu = time.perf_counter(), time.process_time()
        quantize(
            QuantizeOptions(
                model=arguments.model,
                calibration=calibration,
                sequences=arguments.sequences,
                length=arguments.length,
                scheme=arguments.scheme,
                method=method,
                target="transformers",
                out=out,
                replace=True,
            )
        )
        rows.append(
            _row(arguments, method, out, time.perf_counter() - start, time.process_time() - cpu, text)
        )
    if arguments.bpw:
        out = arguments.out / "recover"
        start, cpu = time.perf_counter(), time.process_time()
        recover(
            RecoverOptions(
                model=arguments.model,
                calibration=calibration,
                evaluate=text,
                sequences=arguments.sequences,
                length=arguments.length,
                evaluation_sequences=arguments.evaluation_sequences,
                evaluation_length=arguments.evaluation_length,
                bpw=arguments.bpw,
                out=out,
                replace=True,
            )
        )
        seconds, used = time.perf_counter() - start, time.process_time() - cpu
        rows.append(_row(arguments, "recover", out, seconds, used, text))
    return rows


def _row(
    arguments: argparse.Namespace, label: str, out: Path, seconds: float, cpu: float, text: tuple[Path, ...]
) -> dict[str, object]:
    proof = evaluate(
        EvaluateOptions(
            reference=arguments.model,
            candidate=str(out),
            text=text,
            sequences=arguments.evaluation_sequences,
            length=arguments.evaluation_length,
        )
    )
    result = proof.results[-1]
    row: dict[str, object] = {
        "label": label,
        "bits_per_weight": result.bits_per_weight,
        "kl": result.kl.value,
        "kl_interval": [result.kl.low, result.kl.high],
        "perplexity": result.perplexity.value,
        "reference_perplexity": proof.reference_perplexity.value,
        "top1_agreement": result.top1_agreement.value,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Parse, measure, write quality.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", type=Path, action="append", required=True)
    parser.add_argument("--evaluate", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scheme", default="w4a-g64")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--bpw", type=float, default=0.0, help="also recover at this budget")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--evaluation-sequences", type=int, default=16)
    parser.add_argument("--evaluation-length", type=int, default=1024)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = measure(arguments)
    (arguments.out / "quality.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
