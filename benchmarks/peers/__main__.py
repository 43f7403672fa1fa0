"""Ours against every peer that runs here: KL, stored bits, CPU time and memory, on the same tokens.

    python -m benchmarks.peers --setup PEER [PEER ...] --envs DIR
    python -m benchmarks.peers MODEL --calibration T --evaluate T --envs DIR --out FOLDER

Each peer runs in an environment of its own, DIR/PEER (or --python PEER=PATH), one process at a time; an
interrupted run goes on where it stopped. Writes peers.json, peers.md and peers.html. What fails is kept with
its reason, and is tried again with --retry.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.peers.bench import Bench, How, Peer, run_rows
from benchmarks.peers.environments import ENVIRONMENTS, python_of, set_up
from benchmarks.peers.rows import ROWS, Row


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", nargs="?", help="the reference, a Hugging Face folder")
    add("--setup", nargs="*", choices=list(ENVIRONMENTS), help="make these environments (none named: all)")
    add("--envs", type=Path, default=Path(".cache/peers"), help="folder of the environments")
    add("--python", action="append", default=[], metavar="PEER=PATH", help="an environment elsewhere")
    add("--out", type=Path, help="folder for results")
    add("--calibration", type=Path, action="append", default=[])
    add("--evaluate", type=Path, action="append", default=[])
    add("--sequences", type=int, default=128, help="calibration windows")
    add("--length", type=int, default=512, help="tokens in each calibration window")
    add("--evaluation-sequences", type=int, default=16)
    add("--evaluation-length", type=int, default=1024)
    add("--group", type=int, default=64, help="group size, where we choose it; must divide every width")
    add("--threads", type=int, default=2, help="threads of every tool, ours included")
    add("--limit", type=float, default=3600.0, help="seconds that a tool may take for one checkpoint")
    add("--only", nargs="*", default=[], help="rows whose label holds one of these words")
    add("--bits", type=int, choices=(2, 3, 4, 8), help="rows of codes of so many bits only")
    add("--retry", action="store_true", help="try again what failed")
    add("--keep", action="store_true", help="keep the checkpoints")
    return parser.parse_args(arguments)


def all_peers(envs: Path, elsewhere: Sequence[str]) -> dict[str, Peer]:
    """Every peer, its environment there or not."""
    scripts = Path(__file__).parent
    found = {name: Peer(python_of(envs / name), scripts / of.script) for name, of in ENVIRONMENTS.items()}
    for entry in elsewhere:
        peer, _, path = entry.partition("=")
        if peer not in ENVIRONMENTS or not path:
            raise SystemExit(f"--python {entry}: expected PEER=PATH, a peer of {', '.join(ENVIRONMENTS)}")
        found[peer] = replace(found[peer], python=Path(path))
    return found


def needs(peers: Mapping[str, Peer], rows: Sequence[Row]) -> str:
    """Which environments these rows need, which are there, and what goes into those that are not."""
    lines = []
    for name in dict.fromkeys(row.peer for row in rows if row.peer):
        of = ENVIRONMENTS[name]
        missing = "" if peers[name].python.exists() else f" MISSING, --setup {name}: {' '.join(of.packages)}"
        lines.append(f"{name}: {peers[name].python}{missing}")
    return "\n".join(lines)


def chosen(words: Sequence[str], bits: int | None) -> list[Row]:
    """The rows asked for."""
    rows = [row for row in ROWS if bits in (None, row.bits)]
    return [row for row in rows if not words or any(word in row.label for word in words)]


def set_up_all(peers: Sequence[str], envs: Path) -> None:
    """Make each environment that is not there. One that fails is named and removed, and the next is made."""
    failed = []
    for peer in peers or ENVIRONMENTS:
        folder = envs / peer
        if (folder / ".ready").exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            set_up(peer, folder.absolute(), sys.executable)
        except Exception as error:  # noqa: BLE001  whatever a foreign installer does, the others are made
            print(f"{peer}: no environment: {error}", flush=True)
            failed.append(peer)
            continue
        (folder / ".ready").touch()
    if failed:
        raise SystemExit(f"no environment for {', '.join(failed)}; their rows will say so")


def main(arguments: Sequence[str] | None = None) -> None:
    given = read_arguments(arguments)
    if given.setup is not None:
        set_up_all(given.setup, given.envs)
        if given.model is None:
            return
    if given.model is None or given.out is None or not given.calibration or not given.evaluate:
        raise SystemExit("expected MODEL, --out, --calibration and --evaluate; see --help")
    bench = Bench(
        model=given.model,
        out=given.out,
        calibration=tuple(given.calibration),
        evaluate=tuple(given.evaluate),
        sequences=given.sequences,
        length=given.length,
        evaluation_sequences=given.evaluation_sequences,
        evaluation_length=given.evaluation_length,
        group=given.group,
        threads=given.threads,
    )
    rows = chosen(given.only, given.bits)
    how = How(all_peers(given.envs, given.python), given.limit, given.retry, given.keep)
    print(needs(how.peers, rows), flush=True)
    run_rows(bench, rows, how)


if __name__ == "__main__":
    main()
