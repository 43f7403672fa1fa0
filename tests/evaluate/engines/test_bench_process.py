"""The process behind a speed measurement: its protocol, its ends, and real transformers on a pico model."""

import os
import stat
import sys
import time
from pathlib import Path

import pytest

import small_models
from quantriage.errors import EngineError
from quantriage.evaluate.engines.bench_process import BenchProcess, BenchRequest

STARTED = '{"engine": "fake 1", "dtype": "float16", "seconds": 1.5, "before": 7}'
ROUND = '{"first": 0.25, "total": 1.0, "made": 4, "cpu": 0.5, "peak": 9, "gpu": null}'


def process(folder: Path, body: str, seconds: float = 60.0) -> BenchProcess:
    """An engine whose "Python" is a script with this body; `say(line)` and `hear()` are at hand."""
    python = folder / "python"
    python.write_text(
        f"#!{sys.executable}\nimport json, os, sys, time\nout = os.fdopen(int(sys.argv[3]), 'w')\n"
        "def say(line):\n    out.write(line + chr(10)); out.flush()\n"
        f"hear = lambda: json.loads(sys.stdin.readline())\nstarted, round = {STARTED!r}, {ROUND!r}\n{body}\n"
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    request = BenchRequest(folder / "model", "auto", 50, 1)
    return BenchProcess("fake", "bench_transformers.py", python, request, seconds)


def test_rounds_cross_whole(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    body = (
        f"say(started); heard = hear(); open({str(seen)!r}, 'w').write(json.dumps(heard)); say(round); hear()"
    )
    with process(tmp_path, body) as running:
        started = running.start()
        reply = running.round([1, 2], 3)
    assert (started.engine, started.dtype, started.seconds, started.before) == ("fake 1", "float16", 1.5, 7)
    assert (reply.first, reply.total, reply.made, reply.peak) == (0.25, 1.0, 4, 9)
    assert seen.read_text() == '{"tokens": [1, 2], "new": 3}'


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise SystemExit('no kernel for this layer')", "status 1 .*no kernel for this layer"),
        ("say('{')", "cannot be read"),
        ("say('[' * 60000)", "cannot be read"),
        ("say(started.replace('7', '\"x\"'))", "cannot be read"),
        ("say('x' * 200000); time.sleep(60)", "more than"),
        ("say(started); hear(); say(round.replace('4', '3')); hear()", "3 tokens"),
        ("say(started); hear(); say(round.replace('0.25', '2.0')); hear()", "after 2 s of 1"),
        ("say(started); hear(); print('was here', flush=True); os._exit(9)", "status 9 .*was here"),
    ],
)
def test_an_engine_without_a_usable_answer_is_one_clear_error(tmp_path: Path, body: str, said: str) -> None:
    with process(tmp_path, body) as running, pytest.raises(EngineError, match=f"(?s)^fake: .*{said}"):
        one_round(running)


def test_an_engine_that_hangs_ends_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "child"
    body = f"child = os.fork()\nif child:\n    open({str(note)!r}, 'w').write(str(child))\ntime.sleep(600)"
    began = time.monotonic()
    with (
        process(tmp_path, body, seconds=3) as running,
        pytest.raises(EngineError, match="no answer within 3 s"),
    ):
        running.start()
    assert time.monotonic() - began < 60
    assert ended(int(note.read_text()))


def one_round(running: BenchProcess) -> None:
    running.start()
    running.round([1, 2], 3)


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    request = BenchRequest(tmp_path, "auto", 50, 1)
    nowhere = BenchProcess("fake", "bench_vllm.py", tmp_path / "nowhere", request, 5)
    with nowhere as running, pytest.raises(EngineError, match="nowhere cannot be run"):
        running.start()


def test_kernels_are_taken_out_of_what_the_engine_prints(tmp_path: Path) -> None:
    line = "Using CPUWNA16LinearKernel for mixed-precision linear"
    body = f"print('INFO x.py {line}', flush=True); say(started); hear()"
    with process(tmp_path, body) as running:
        running.start()
        assert running.kernels() == (line,)


def test_real_transformers_on_a_pico_model(tmp_path: Path) -> None:
    saved = small_models.save("llama", tmp_path / "model")
    request = BenchRequest(saved.folder, "auto", 40, 1)
    running = BenchProcess("real", "bench_transformers.py", Path(sys.executable), request, 240)
    with running:
        started = running.start()
        rounds = [running.round(list(range(20 + i)), 5) for i in range(3)]
        profile = running.profile(list(range(20)))
    assert started.engine.startswith("transformers ")
    assert started.dtype == "float32"
    assert all(one.made == 6 and 0 < one.first < one.total for one in rounds)
    assert profile.weights is not None
    # parameters in float32, and the few numbers of the rotary tables
    assert 0 <= profile.weights - 4 * sum(p.numel() for p in saved.whole.parameters()) < 1000
    assert any("mm" in name for name, _ in profile.operations)
    assert started.before <= rounds[-1].peak < 4e9
    assert os.name != "posix" or running.cpu_seconds() == 0.0  # it has ended


def ended(number: int) -> bool:
    """Whether a process is gone or only waits to be reaped."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False
