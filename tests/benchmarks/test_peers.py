"""The peers' bench with a fake peer: rows, resuming, reasons, refusals, the table and the picture."""

import ast
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from benchmarks.faults.reference import pico, pico_text
from benchmarks.measured import Cost, Judged, Loaded, ProcessError, timed
from benchmarks.peers.__main__ import all_peers, chosen, main, needs
from benchmarks.peers.bench import Bench, How, Peer, command, run_rows
from benchmarks.peers.environments import ENVIRONMENTS
from benchmarks.peers.rows import ROWS, Row
from benchmarks.peers.table import Result, markdown, plot, ratio

# Copies the reference; "broken" ends with an error, "unreadable" leaves a file that nobody reads.
FAKE = """
import argparse, json, pathlib, shutil
parser = argparse.ArgumentParser()
for name in ("model", "tokens", "out", "json", "threads", "mode"):
    parser.add_argument("--" + name)
given = parser.parse_args()
with open(pathlib.Path(__file__).with_name("calls.txt"), "a") as calls:
    calls.write(given.mode + "\\n")
if given.mode == "broken":
    raise SystemExit("width 288 is no multiple of 128")
shutil.copytree(given.model, given.out)
if given.mode == "unreadable":
    (pathlib.Path(given.out) / "model.safetensors").write_bytes(b"nothing")
pathlib.Path(given.json).write_text(json.dumps({"tool": "fake 1.0", "bits_per_weight": 4.25}))
"""
ROWS_HERE = tuple(
    Row(f"fake {mode}", "fake", 4, ("--mode", mode)) for mode in ("good", "broken", "unreadable")
)


@dataclass(frozen=True)
class Ran:
    """A bench that ran once, and the fake peer's diary."""

    bench: Bench
    how: How
    calls: Path
    results: dict[str, Result]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("peers")
    script = folder / "fake.py"
    script.write_text(FAKE)
    text = pico_text(folder / "words.txt")
    bench = Bench(
        model=str(pico(folder / "reference")),
        out=folder / "out",
        calibration=(text,),
        evaluate=(text,),
        sequences=2,
        length=16,
        evaluation_sequences=2,
        evaluation_length=16,
        group=32,
        threads=1,
    )
    how = How({"fake": Peer(Path(sys.executable), script), "absent": Peer(folder / "none", script)}, 600.0)
    rows = (*ROWS_HERE, Row("absent one", "absent", 4, ()))
    results = {result.label: result for result in run_rows(bench, rows, how)}
    return Ran(bench, how, folder / "calls.txt", results)


def test_a_copy_of_the_reference_loses_nothing_by_us_and_by_plain_transformers(ran: Ran) -> None:
    good = ran.results["fake good"]
    assert good.failed == {}
    assert good.judged is not None
    assert good.loaded is not None
    assert abs(good.judged.kl) < 1e-6
    assert abs(good.loaded.kl) < 1e-6
    assert good.loaded.perplexity == pytest.approx(good.judged.perplexity, rel=1e-4)
    assert good.tool == "fake 1.0"
    assert good.body == 4.25
    assert good.whole == pytest.approx(32, rel=0.2)  # float32 and little else
    assert good.cost is not None
    assert good.cost.cpu_seconds > 0
    assert good.cost.peak_memory_bytes > 1 << 20


def test_what_could_not_be_done_says_why(ran: Ran) -> None:
    broken, unreadable, absent = (
        ran.results[name] for name in ("fake broken", "fake unreadable", "absent one")
    )
    assert broken.failed == {"made": "ended with 1: width 288 is no multiple of 128"}
    assert "--setup absent" in absent.failed["environment"]
    assert unreadable.cost is not None
    assert set(unreadable.failed) == {"judged", "loaded"}
    page = (ran.bench.out / "peers.md").read_text()
    assert "| fake good | 4.25 |" in page
    assert "- fake broken, made: ended with 1: width 288 is no multiple of 128" in page


def test_a_second_run_does_nothing_again_but_what_is_missing(ran: Ran) -> None:
    before = ran.calls.read_text().splitlines()
    assert before == ["good", "broken", "unreadable"]
    run_rows(ran.bench, ROWS_HERE, ran.how)
    assert ran.calls.read_text().splitlines() == before
    (ran.bench.out / "rows" / "fake-broken.json").unlink()
    run_rows(ran.bench, ROWS_HERE[:2], ran.how)
    assert ran.calls.read_text().splitlines() == [*before, "broken"]
    run_rows(ran.bench, ROWS_HERE[1:2], replace(ran.how, retry=True))
    assert ran.calls.read_text().splitlines() == [*before, "broken", "broken"]


def test_a_row_whose_environment_was_missing_is_made_when_it_is_there(ran: Ran) -> None:
    before = ran.calls.read_text().splitlines()
    row = Row("absent one", "absent", 4, ("--mode", "broken"))
    there = replace(ran.how, peers={"absent": ran.how.peers["fake"]})
    results = {result.label: result for result in run_rows(ran.bench, [row], there)}
    assert ran.calls.read_text().splitlines() == [*before, "broken"]
    assert set(results["absent one"].failed) == {"made"}


def test_other_conditions_are_refused(ran: Ran) -> None:
    with pytest.raises(SystemExit, match="other conditions"):
        run_rows(replace(ran.bench, length=8), ROWS_HERE, ran.how)


def test_checkpoints_go_unless_they_are_kept(ran: Ran) -> None:
    assert list((ran.bench.out / "made").iterdir()) == []


def test_every_peer_gets_the_same_tokens_and_ours_the_same_texts(ran: Ran) -> None:
    peers = all_peers(Path("envs"), ["hqq=/elsewhere/python"])
    assert peers["hqq"].python == Path("/elsewhere/python")
    for row in ROWS:
        words = command(ran.bench, row, peers[row.peer] if row.peer else None, Path("figures.json"))
        assert "{group}" not in " ".join(words)
        if row.peer:
            assert words[words.index("--tokens") + 1] == str(ran.bench.tokens)
        else:
            assert words[words.index("--calibration") + 1] == str(ran.bench.calibration[0])
            assert words[words.index("--sequences") + 1] == "2"


def test_the_table_of_rows_is_sound() -> None:
    assert len({row.label for row in ROWS}) == len(ROWS)
    assert {row.peer for row in ROWS if row.peer} == set(ENVIRONMENTS)
    assert [row.label for row in chosen(["Q4_0"], 4)] == ["llama.cpp Q4_0", "llama.cpp Q4_0 no-importance"]
    assert {row.bits for row in chosen([], 3)} == {3}


@pytest.mark.parametrize("peer", ENVIRONMENTS)
def test_a_peers_script_imports_nothing_of_ours_and_pins_its_tool(peer: str) -> None:
    (script,) = (entry.script for name, entry in all_peers(Path("envs"), []).items() if name == peer)
    tree = ast.parse(script.read_text())
    imported = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert not {name for name in imported if name.split(".")[0] in ("quantriage", "benchmarks")}
    assert script.stem not in imported  # it lies first on the path, so it would import itself
    assert all("==" in package for package in ENVIRONMENTS[peer].packages[:2])


def test_a_process_that_runs_too_long_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="time limit"):
        timed([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log", 0.5)


def result(label: str, bits: float, kl: float) -> Result:
    judged = Judged(kl, (kl / 2, kl * 2), 20.0, 0.9, bits, 1_000_000)
    return Result(label, 1_000_000, cost=Cost(2.0, 3.0, 1 << 30), judged=judged, loaded=Loaded(kl, 20.0))


def test_the_table_is_ordered_by_bits_and_the_picture_holds_every_row(tmp_path: Path) -> None:
    results = [
        result("ours w4a", 4.6, 0.05),
        result("hqq w3", 3.6, 0.5),
        Result("hqq w4", 1, failed={"made": "no"}),
    ]
    lines = markdown(results).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| hqq w3", "| ours w4a"]
    assert "8.00" in lines[2]  # a million bytes for a million weights
    assert "- hqq w4, made: no" in lines
    plot(results, tmp_path / "peers.html")
    page = (tmp_path / "peers.html").read_text()
    assert "hqq w3" in page
    assert "ours w4a" in page
    assert 'src="http' not in page


def test_a_peer_is_held_against_the_best_of_ours_of_no_more_bits_in_its_family() -> None:
    ours = [
        result("ours w4a", 4.6, 0.05),
        result("ours w3a", 3.6, 0.2),
        result("ours w8s", 8.5, 0.001),
        result("ours recover llama.cpp 4.9", 5.0, 0.01),
    ]
    assert ratio(result("hqq w4", 4.6, 0.1), ours) == 0.5
    assert ratio(result("hqq w4", 4.5, 0.1), ours) == 2.0
    assert ratio(result("llama.cpp Q4_0", 4.5, 0.1), ours) == pytest.approx(
        0.1
    )  # by the whole file, of 8 bits here
    assert ratio(result("hqq w2", 2.6, 1.0), ours) is None
    assert ratio(ours[0], ours) is None


def test_the_environments_that_are_needed_are_named(tmp_path: Path) -> None:
    peers = all_peers(tmp_path, [f"hqq={sys.executable}"])
    said = needs(peers, [row for row in ROWS if row.peer in ("hqq", "torchao", "")]).splitlines()
    assert said[0] == f"hqq: {sys.executable}"
    assert said[1].startswith(f"torchao: {tmp_path}")
    assert "MISSING, --setup torchao: torch==" in said[1]
    assert len(said) == 2


def test_the_command_line_refuses_what_it_cannot_do() -> None:
    with pytest.raises(SystemExit, match="expected MODEL"):
        main([])
    with pytest.raises(SystemExit, match="PEER=PATH"):
        all_peers(Path("envs"), ["nobody=/python"])
