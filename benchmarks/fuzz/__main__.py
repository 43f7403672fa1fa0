"""Fuzz every reader for a while, one process at a time, and write what was found.

    python -m benchmarks.fuzz --out DIR --seconds N [--readers ... | --readers all]

Needs atheris in an environment of its own (`make fuzz`). The time is shared out equally; `all` takes turns
between all formats in one process, which saves imports where time is short. A corpus that is already in DIR
is continued, and counts are added up in DIR/runs.jsonl. Exit code 1 if anything was found.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.fuzz.seeds import ALL, READERS
from benchmarks.markdown import table

_SHORTEST = 5.0  # seconds; a process that ended early is started again for what is left, if it is more
_HEADINGS = ("reader", "executions", "opened", "slowest, s", "memory, MB", "corpus", "places", "ended early")


def fuzz(reader: str, out: Path, seconds: float) -> list[dict[str, Any]]:
    """One reader for so long, started again whenever a find ends the process; the counts of each run."""
    runs = []
    stop = time.monotonic() + seconds
    while (left := stop - time.monotonic()) > _SHORTEST or not runs:
        (out / f"{reader}.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.fuzz.guided", reader, str(out), str(left)]
        with (out / f"{reader}.log").open("w") as log:
            code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
        counted = out / f"{reader}.json"
        counts = (
            json.loads(counted.read_text())
            if counted.is_file()
            else {"executions": 0, "seconds": 0, "cpu": 0}
        )
        runs.append({"reader": reader, "exit": code, **counts})
        if not counts["executions"] and sum(not run["executions"] for run in runs) > 3:
            raise SystemExit(f"{reader}: nothing runs, see {out / f'{reader}.log'}")
        with (out / "runs.jsonl").open("a") as file:
            file.write(json.dumps(runs[-1]) + "\n")
    return runs


def summary(out: Path) -> str:
    """All runs recorded in a folder, by reader, as Markdown."""
    runs = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    rows = []
    for reader in dict.fromkeys(run["reader"] for run in runs):
        own = [run for run in runs if run["reader"] == reader]
        kept = sum(1 for _ in (out / "corpus" / reader).iterdir())
        places = {name for run in own for name in run.get("finds", {})}
        ended = sum(run["exit"] != 0 for run in own)
        executions, opened = (f"{sum(run.get(k, 0) for run in own):,}" for k in ("executions", "opened"))
        slowest = max(run.get("slowest", 0) for run in own)
        memory = max(run.get("memory", 0) for run in own) >> 20
        row = (reader, executions, opened, slowest, memory, kept, len(places), ended)
        rows.append(tuple(str(cell) for cell in row))
    hours, busy = (sum(run[key] for run in runs) / 3600 for key in ("seconds", "cpu"))
    return f"{table(_HEADINGS, rows)}\n\n{hours:.2f} hours of one process, {busy:.2f} of them on a core."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600.0, help="for all readers together")
    parser.add_argument("--readers", nargs="*", default=list(READERS), choices=(*READERS, ALL))
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    found = 0
    for reader in given.readers:
        runs = fuzz(reader, given.out, given.seconds / len(given.readers))
        places = {name for run in runs for name in run.get("finds", {})}
        ended = sum(run["exit"] != 0 for run in runs)
        found += len(places) + ended
        executions = sum(run["executions"] for run in runs)
        print(f"{reader}: {executions} executions, {len(places)} places, {ended} ended early", flush=True)
        for name in sorted(places):
            print(f"  {name}", flush=True)
    (given.out / "fuzz.md").write_text(summary(given.out) + "\n")
    print(summary(given.out))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
