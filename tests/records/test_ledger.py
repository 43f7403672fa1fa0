"""The ledger: whatever byte a kill cuts it at, the commits before survive and the next one lands."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantriage.errors import ResumeError, StorageError
from quantriage.records.ledger import Ledger

FROZEN = {"recipe": "w4a-g64", "seed": 1, "damp": 0.01, "act_order": True, "note": None}
STEPS = [
    (f"block {i}", f"{i:04x}", {"seconds": i / 7, "text": 'new\nline "quoted" \u2028 é'}) for i in range(5)
]


def _filled(path: Path) -> Ledger:
    ledger = Ledger(path, FROZEN)
    for step, digest, payload in STEPS:
        ledger.commit(step, digest, payload)
    return ledger


def test_a_resumed_ledger_has_every_commit_in_order(tmp_path: Path) -> None:
    written = _filled(tmp_path / "run" / "ledger.jsonl").completed()
    again = Ledger(tmp_path / "run" / "ledger.jsonl", FROZEN).completed()
    assert list(again) == [step for step, _, _ in STEPS]
    assert again == written
    assert again["block 2"].payload["seconds"] == 2 / 7


def test_cut_at_every_byte_the_commits_before_survive(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    _filled(path)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        survivors = max(0, sum(end <= cut for end in ends) - 1)  # the first line holds the settings
        ledger = Ledger(path, FROZEN)
        assert list(ledger.completed()) == [step for step, _, _ in STEPS[:survivors]], cut
        if cut % 11:  # every byte is read; the slower repair is tried at some
            continue
        for step, digest, payload in STEPS[survivors:]:
            ledger.commit(step, digest, payload)
        assert path.read_bytes() == whole, cut


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_cut_and_followed_by_noise_the_commits_before_survive(data: st.DataObject) -> None:
    """A power cut can leave a block of zeros or old bytes behind the last synced line."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        _filled(path)
        whole = path.read_bytes()
        start = whole.rindex(b"\n", 0, len(whole) - 1) + 1  # the last line may be torn
        cut = data.draw(st.integers(start, len(whole) - 1))
        noise = data.draw(st.binary(max_size=20)).replace(b"\n", b"\0")
        path.write_bytes(whole[:cut] + noise + data.draw(st.sampled_from([b"", b"\n"])))
        expected = [step for step, _, _ in STEPS[:-1]]
        found = list(Ledger(path, FROZEN).completed())
        assert found in (expected, [step for step, _, _ in STEPS])  # all, if only the newline was missing


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": "w3a-g64"}, "recipe was 'w4a-g64', now 'w3a-g64'"),
        ({"seed": 2}, "seed was 1, now 2"),
        ({"extra": "x"}, "extra was absent, now 'x'"),
    ],
)
def test_a_changed_frozen_setting_is_named_with_both_values(
    tmp_path: Path, change: dict[str, str | int], said: str
) -> None:
    _filled(tmp_path / "l")
    with pytest.raises(ResumeError, match=said):
        Ledger(tmp_path / "l", {**FROZEN, **change})


def test_the_order_of_settings_does_not_matter(tmp_path: Path) -> None:
    _filled(tmp_path / "l")
    assert len(Ledger(tmp_path / "l", dict(reversed(FROZEN.items()))).completed()) == len(STEPS)


def test_damage_before_the_last_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l"
    _filled(path)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], b"garbage", *lines[3:]]))
    with pytest.raises(ResumeError, match="line 3 is damaged"):
        Ledger(path, FROZEN)


def test_edited_settings_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "l"
    _filled(path)
    path.write_bytes(path.read_bytes().replace(b"w4a-g64", b"w3a-g64"))
    with pytest.raises(ResumeError, match="were edited"):
        Ledger(path, FROZEN)
    path.write_text('{"some": "json"}\n')
    with pytest.raises(ResumeError, match="not a ledger"):
        Ledger(path, FROZEN)


def test_a_step_is_committed_once(tmp_path: Path) -> None:
    ledger = _filled(tmp_path / "l")
    with pytest.raises(ResumeError, match="already committed"):
        ledger.commit("block 0", "x")


def test_a_full_disk_tears_nothing_and_the_commit_can_be_tried_again(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    ledger = _filled(tmp_path / "l")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "l").stat().st_size + 10, old[1]))
    try:
        with pytest.raises(StorageError, match="disk is full"):
            ledger.commit("more", "d")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    ledger.commit("more", "d")
    assert list(Ledger(tmp_path / "l", FROZEN).completed()) == [*(step for step, _, _ in STEPS), "more"]


_HOLDS = """
import sys
from pathlib import Path
from quantriage.records.ledger import Ledger
Ledger(Path(sys.argv[1]), {"seed": 1})
print("holds", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    path = tmp_path / "run" / "ledger.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"holds\n"
        with pytest.raises(ResumeError, match=f"process {first.pid} works in this run folder"):
            Ledger(path, {"seed": 1})
        first.kill()
    assert Ledger(path, {"seed": 1}).completed() == {}  # after a kill the run goes on


def test_a_torn_mark_of_a_writer_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    _filled(path)
    path.with_name("ledger.jsonl.writer").write_bytes(b'{"host": "')
    assert len(Ledger(path, FROZEN).completed()) == len(STEPS)
