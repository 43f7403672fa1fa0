"""The two files that cross to an engine's environment, and the ways in which an engine can fail to answer."""

import json
import os
import stat
import sys
import time
from pathlib import Path

import pytest
import torch

from quantriage.errors import EngineError, UsageError
from quantriage.evaluate.engines.difference import difference
from quantriage.evaluate.engines.outside import OutsideEngine, spread
from quantriage.evaluate.engines.protocol import LEAST_LOGPROB, EngineAnswer, EngineQuestion
from quantriage.evaluate.engines.registry import ENGINES, make_engine

TOKENS = torch.arange(12).reshape(3, 4)
ANSWER = {"engine": "fake 1", "dtype": "float16", "logprobs": [[-1.0, -2.0, -3.0]] * 3}


def engine(folder: Path, body: str, seconds: float = 60.0, most: int | None = None) -> OutsideEngine:
    """An engine whose "Python" is a script with this body; `request` and `write(reply)` are at hand."""
    python = folder / "python"
    python.write_text(
        f"#!{sys.executable}\nimport json, os, sys, time\nrequest = json.load(open(sys.argv[2]))\n"
        f"write = lambda reply: json.dump(reply, open(sys.argv[3], 'w'))\nanswer = {ANSWER!r}\n{body}\n"
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return OutsideEngine("fake", "ask_vllm.py", python, seconds, lambda kind: None, most)


def ask(folder: Path, body: str, seconds: float = 60.0, most: int | None = None) -> EngineAnswer:
    question = EngineQuestion(folder / "model", "dense", TOKENS, "float16", {"kv_cache_dtype": "fp8"})
    return engine(folder, body, seconds, most).ask(question)


def test_a_question_crosses_whole_and_the_answer_comes_back(tmp_path: Path) -> None:
    answer = ask(tmp_path, f"json.dump(request, open({str(tmp_path / 'seen')!r}, 'w')); write(answer)")
    seen = json.loads((tmp_path / "seen").read_text())
    assert seen == {
        "model": str(tmp_path / "model"),
        "tokens": TOKENS.tolist(),
        "dtype": "float16",
        "options": {"kv_cache_dtype": "fp8"},
        "asked": [[0, 1, 2]] * 3,
    }
    assert (answer.engine, answer.dtype, answer.broken) == ("fake 1", "float16", 0)
    assert torch.equal(answer.logprobs, torch.tensor([[-1.0, -2.0, -3.0]] * 3))


def test_a_sample_of_positions_is_asked_for_and_the_rest_stays_unknown(tmp_path: Path) -> None:
    body = "answer['logprobs'] = [[-1.0 if i in a else None for i in range(3)] for a in request['asked']]"
    answer = ask(tmp_path, f"{body}; write(answer)", most=3)
    assert torch.equal(answer.logprobs.isnan(), ~spread(3, 3, 3))
    assert spread(3, 3, 3).sum(dim=1).tolist() == [1, 1, 1]
    assert spread(2, 100, 20).sum(dim=1).tolist() == [10, 10]
    assert spread(2, 3, None).all()


def test_figures_that_are_no_numbers_are_counted_and_bounded(tmp_path: Path) -> None:
    body = "answer['logprobs'][1] = [float('nan'), float('-inf'), -1e9]; write(answer)"
    answer = ask(tmp_path, body)
    assert answer.broken == 2
    assert answer.logprobs[1].tolist() == [LEAST_LOGPROB] * 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise SystemExit('no kernel for this layer')", "status 1 .*no kernel for this layer"),
        ("print('was here')", "status 0 and no answer.*was here"),
        ("os.kill(os.getpid(), 9)", "status -9"),
        ("open(sys.argv[3], 'w').write('{')", "cannot be read"),
        ("open(sys.argv[3], 'w').write('[' * 60000)", "cannot be read"),
        ("write({'logprobs': []})", "cannot be read"),
        ("answer['logprobs'][0][0] = 'x'; write(answer)", "cannot be read"),
        ("answer['extra'] = 1; write(answer)", "cannot be read"),
        ("answer['logprobs'].pop(); write(answer)", "2 rows .*expected 3 of 3"),
        ("answer['logprobs'][2].append(0.0); write(answer)", "expected 3 of 3"),
        ("answer['engine'] = 'x' * 100000; write(answer)", "at most"),
    ],
)
def test_an_engine_without_a_usable_answer_is_one_clear_error(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(EngineError, match=f"(?s)^fake: .*{said}"):
        ask(tmp_path, body)


def test_only_the_end_of_a_long_output_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        ask(tmp_path, "sys.stderr.write('x' * 10_000_000 + 'the end'); sys.exit(3)")
    assert str(caught.value).endswith("xthe end")
    assert len(str(caught.value)) < 3000


def test_an_engine_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "child"
    body = (
        f"child = os.fork()\nif child:\n    open({str(note)!r}, 'w').write(str(child))\n    os.wait()\n"
        "time.sleep(600)"
    )
    started = time.monotonic()
    with pytest.raises(EngineError, match="no answer within 5 s"):
        ask(tmp_path, body, seconds=5)
    assert time.monotonic() - started < 60
    assert _ended(int(note.read_text()))


def _ended(process: int) -> bool:
    """Whether a process is gone or only waits to be reaped."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_nothing_of_this_environment_reaches_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    body = "answer['engine'] = str(os.environ.get('PYTHONPATH')) + os.environ['VLLM_CPU_KVCACHE_SPACE']"
    assert ask(tmp_path, f"{body}; write(answer)").engine == "None1"
    assert os.environ["PYTHONPATH"] == "/ours"


def test_a_python_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    missing = OutsideEngine("fake", "ask_vllm.py", tmp_path / "none", 1.0, lambda kind: None)
    with pytest.raises(EngineError, match=r"none cannot be run .*--engine-python"):
        missing.ask(EngineQuestion(tmp_path, "dense", TOKENS))


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_can_be_made_and_says_what_it_reads(name: str) -> None:
    made = make_engine(name, {"": Path("python")}, 1.0)
    assert made.name == name
    accepted = [kind for kind in ("dense", "gguf", "compressed-tensors") if made.refuses(kind) is None]
    assert accepted


def test_a_python_for_one_engine_goes_before_the_one_for_all() -> None:
    for name in ENGINES:
        made = make_engine(name, {name: Path("mine"), "": Path("all")}, 1.0)
        assert isinstance(made, OutsideEngine)
        assert made.python == Path("mine")
    assert not isinstance(make_engine("transformers", {"": Path("all")}, 1.0), OutsideEngine)
    with pytest.raises(UsageError, match="--engine-python"):
        make_engine("vllm", {"transformers": Path("python")}, 1.0)


def test_the_difference_is_of_pairs_over_what_was_asked() -> None:
    ours = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, -1.0], [-5.0, -5.0, -5.0]])
    theirs = torch.tensor([[-1.5, -1.5, torch.nan], [-1.0, -1.0, -4.0], [torch.nan] * 3])
    found = difference(ours, theirs)
    assert found.tokens == 5
    assert found.largest == 3.0
    assert found.mean_absolute.value == pytest.approx((0.5 + 1.0) / 2)  # means of sequences 0 and 1
    assert found.nll_shift.value == pytest.approx((0.0 + 1.0) / 2)  # by hand: -(0 / 2) and -(-3 / 3)
    with pytest.raises(EngineError, match="no log-probability"):
        difference(ours, torch.full_like(ours, torch.nan))
    with pytest.raises(EngineError, match="shape"):
        difference(ours, ours[:2])
