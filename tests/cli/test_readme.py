"""The README's example runs as it stands, and what the command line says of the same run agrees with it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner
from word_model import save_model, save_text

import quantriage
from quantriage.cli.app import COMMANDS, GROUPS, application
from quantriage.cli.command import NOT_PROVEN
from quantriage.records.run_dir import PROOF, SUMMARY, RunDir
from quantriage.records.types import Proof, RunSummary

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the example ran in, and what it printed."""
    folder = tmp_path_factory.mktemp("readme")
    save_model(folder / "my-model")
    save_text(folder / "calibration.txt", seed=1, words=9600)
    save_text(folder / "held-out.txt", seed=2, words=2400)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(quantriage.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_example_leaves_a_checkpoint_a_report_and_a_verdict(ran: tuple[Path, str]) -> None:
    folder, printed = ran
    assert (folder / "my-model-4.5bpw" / "config.json").is_file()
    assert (folder / "my-model-4.5bpw.run" / "report.html").is_file()
    summary = RunDir(folder / "my-model-4.5bpw.run").read(SUMMARY, RunSummary)
    assert summary.verdict is not None
    assert printed.splitlines()[0] == summary.verdict.sentence
    assert summary.verdict.bits_per_weight <= 4.5


def test_the_command_line_resumes_the_same_run_and_shows_every_evaluation(ran: tuple[Path, str]) -> None:
    folder, _ = ran
    run = RunDir(folder / "my-model-4.5bpw.run")
    summary, proof = run.read(SUMMARY, RunSummary), run.read(PROOF, Proof)
    settings = ["--target", "transformers", "--sequences", "16", "--length", "128", "--replace"]
    settings += ["--evaluation-sequences", "8", "--evaluation-length", "128", "--bpw", "4.5"]
    texts = ("--calibration", folder / "calibration.txt", "--evaluate", folder / "held-out.txt")
    arguments = ("recover", folder / "my-model", *texts, "--out", folder / "my-model-4.5bpw", *settings)
    done = CliRunner().invoke(application(), [str(a) for a in arguments])
    assert summary.verdict is not None
    assert done.exit_code == (0 if summary.verdict.proven else NOT_PROVEN), done.stderr
    assert done.stdout.splitlines()[0] == summary.verdict.sentence
    for result in proof.results:
        assert result.label in done.stdout
        assert f"{result.kl.value:.4f} [{result.kl.low:.4f}, {result.kl.high:.4f}]" in done.stdout
    assert "quantize" not in done.stderr  # rounded by the first run, taken from its bank
    assert "prove" in done.stderr


def test_every_command_of_the_readme_exists() -> None:
    known = {command.name: {p.flag for p in command.parameters()} for command in COMMANDS}
    for group, (_, members) in GROUPS.items():
        known[group] = {p.flag for command in members for p in command.parameters()}
    lines = re.findall(r"^quantriage (\w+)(.*)$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(lines) >= 6
    for name, rest in lines:
        assert set(re.findall(r"--[a-z-]+", rest)) <= known[name]


def test_the_readme_lists_every_exit_code() -> None:
    from_code = re.findall(
        r"^\| (\d+) \|", (README.parent / "docs" / "cli.md").read_text(), flags=re.MULTILINE
    )
    from_readme = re.findall(r"^\| (\d+) \|", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert from_readme == from_code
