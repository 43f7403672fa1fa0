"""What every ingredient of a rounding gains: alone, on top of all others, and for how much CPU time.

    python -m benchmarks.ablation MODEL --calibration T --evaluate T --scheme w4a-g32 --out FOLDER

One model, one scheme, the same tokens for every row. An interrupted run goes on where it stopped. Writes
ablation.json and ablation.md anew after every row.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import msgspec

from benchmarks.ablation.rows import ROWS, Row
from benchmarks.ablation.run import Ablation, run_rows
from benchmarks.ablation.table import Result, gains, markdown
from quantriage.records.atomic import write_bytes


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    known = {field.name: field.default for field in fields(Ablation)}
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", help="the reference: a folder, file or hub id")
    add("--calibration", type=Path, action="append", required=True)
    add("--evaluate", type=Path, action="append", required=True)
    add("--out", type=Path, required=True)
    add("--scheme", default=known["scheme"])
    for name in ("sequences", "length", "selection_sequences", "evaluation_sequences", "evaluation_length"):
        add(f"--{name.replace('_', '-')}", type=int, default=known[name])
    for name, learned in (("learn", "scales"), ("learn_rounding", "codes")):
        steps = f"steps of learning {learned}; 0 leaves those rows out"
        add(f"--{name.replace('_', '-')}", type=int, default=known[name], help=steps)
    add("--no-mix", dest="mix", action="store_false", help="leave `recover` out")
    add("--only", nargs="*", default=[], help="rows whose label holds one of these words")
    return parser.parse_args(arguments)


def chosen(words: Sequence[str]) -> list[Row]:
    """The rows asked for."""
    return [row for row in ROWS if not words or any(word in row.label for word in words)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rows and write both files after each."""
    given = vars(read_arguments(arguments))
    rows = chosen(given.pop("only"))
    given["calibration"], given["evaluate"] = tuple(given["calibration"]), tuple(given["evaluate"])
    ablation = Ablation(**given)
    ablation.out.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for result in run_rows(ablation, rows, _say):
        results.append(result)
        _write(ablation, results)
    print(markdown(results))


def _write(ablation: Ablation, results: list[Result]) -> None:
    record = {"conditions": ablation, "rows": results, "gains": gains(results)}
    encoded = msgspec.json.format(msgspec.json.encode(record, enc_hook=str), indent=1)
    write_bytes(ablation.out / "ablation.json", encoded)
    write_bytes(ablation.out / "ablation.md", markdown(results).encode())


def _say(stage: str, done: int, total: int) -> None:
    if done == total:
        print(stage, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
