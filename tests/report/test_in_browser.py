"""The page in a real browser, where one is installed: charts are drawn and nothing is said on the console."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic_diagnosis import write_diagnosis
from synthetic_run import Shape, write_run

from quantriage.report import render

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.parametrize("write", [write_run, write_diagnosis])
@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_charts_are_drawn_without_a_word_on_the_console(
    tmp_path: Path, write: Callable[[Path, Shape], Path]
) -> None:
    path = render(write(tmp_path / "run", Shape(blocks=3)))
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=20000",
            "--enable-logging=stderr",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert console == []
    assert 'data-drawn="yes"' in done.stdout
    boxes = len(re.findall(r'data-chart="', done.stdout))
    assert boxes == len(re.findall(r'class="plot js-plotly-plot"', done.stdout)) > 4
