import io

import pytest

from quantriage.cli.progress import PlainProgress, duration, shown_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_a_stage_prints_at_its_start_and_every_ten_seconds() -> None:
    now = 0.0
    out = io.StringIO()
    progress = PlainProgress(out, clock=lambda: now)
    for done in range(1, 31):  # one step each second
        progress("calibrate", done, 30)
        now += 1.0
    assert out.getvalue().splitlines() == [
        "calibrate: 1/30, 0 s elapsed",
        "calibrate: 11/30, 10 s elapsed, about 17 s left",
        "calibrate: 21/30, 20 s elapsed, about 9 s left",
    ]


def test_a_stage_that_runs_again_is_timed_again() -> None:
    now = 0.0
    out = io.StringIO()
    progress = PlainProgress(out, clock=lambda: now)
    for _ in range(2):
        for done in range(1, 16):  # the end of the first time falls between two lines
            progress("prove", done, 15)
            now += 1.0
    assert out.getvalue().splitlines() == [
        "prove: 1/15, 0 s elapsed",
        "prove: 11/15, 10 s elapsed, about 4 s left",
        "prove: 6/15, 5 s elapsed, about 8 s left",
    ]


def test_names_of_stages_cannot_control_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with shown_progress(quiet=False, stream=out) as progress:
        progress("[red]swap\x1b[2J", 1, 2)
        progress("[red]swap\x1b[2J", 2, 2)
        progress("[red]swap\x1b[2J", 1, 2)  # the same stage again, for another mix
    assert "[red]swap\\x1b[2J" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()
    assert "1/2" in out.getvalue()


def test_quiet_says_nothing() -> None:
    out = Terminal()
    with shown_progress(quiet=True, stream=out) as progress:
        progress("forward", 1, 2)
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.6, "4 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_read_naturally(seconds: float, text: str) -> None:
    assert duration(seconds) == text
