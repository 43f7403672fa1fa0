"""A page whose console blocks are run: commands after `$ `, what they print below, figures with a tolerance.

In the printed lines `...` stands for anything, with the spaces around it, a run of spaces for any other, and
a number for every number within TOLERANCE of it, or one unit of its last digit. `# exit code 11` behind a
command is what it must return. Plugins that run such blocks were looked at (pytest-markdown-console, sybil,
pytest-codeblocks): none compares figures with a tolerance, so only the fences are left to a library.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

TOLERANCE = 0.1
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")
_PART = re.compile(rf"(?P<any>\s*\.\.\.\s*)|(?P<number>{NUMBER.pattern})|(?P<space>\s+)")
_EXIT = re.compile(r"\s+# exit code (\d+)$")


@dataclass(frozen=True)
class Step:
    """One command of a page. line: where its block begins."""

    line: int
    command: str
    exit_code: int
    printed: str

    @property
    def words(self) -> list[str]:
        """The command as a shell would split it."""
        return shlex.split(self.command)


def steps(page: str) -> list[Step]:
    """The commands of all console blocks, in order."""
    fences = (token for token in MarkdownIt().parse(page) if token.type == "fence")
    return [
        step
        for token in fences
        if token.info.strip() == "console" and token.map is not None
        for step in _of_block(token.content.replace("\\\n", " "), token.map[0] + 1)
    ]


def _of_block(content: str, line: int) -> Iterator[Step]:
    before, *commands = re.split(r"^\$ ", content, flags=re.MULTILINE)
    if before.strip() or not commands:
        raise ValueError(f"line {line}: a console block must begin with a command, `$ ...`")
    for text in commands:
        first, _, printed = text.partition("\n")
        code = _EXIT.search(first)
        command = " ".join(_EXIT.sub("", first).split())
        yield Step(line, command, int(code[1]) if code else 0, printed)


def unprinted(page: str) -> list[str]:
    """Figures of the text, inline code apart, that stand in no block before them."""
    shown: set[str] = set()
    missing = []
    for token in MarkdownIt().enable("table").parse(page):
        if token.type == "fence":
            shown |= figures(token.content)
        elif token.type == "inline":
            text = " ".join(part.content for part in token.children or [] if part.type == "text")
            line = token.map[0] + 1 if token.map is not None else 0
            missing += [f"line {line}: {figure}" for figure in sorted(figures(text) - shown)]
    return missing


def figures(text: str) -> set[str]:
    """All numbers of a text, without their signs."""
    return {number.lstrip("+-") for number in NUMBER.findall(text)}


def run(step: Step, folder: Path, variables: dict[str, str]) -> str:
    """What a command prints on stdout; AssertionError when it returns another code than the page says."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        step.words,
        cwd=folder,
        env={**os.environ, "PATH": beside, "COLUMNS": "120", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == step.exit_code, (
        f"line {step.line}: `{step.command}` returned {done.returncode}, not {step.exit_code}\n"
        f"{done.stdout}\n{done.stderr}"
    )
    return done.stdout


def compare(expected: str, actual: str) -> list[str]:
    """How the two differ; nothing if they agree."""
    pattern, numbers, end = "", [], 0
    text = expected.strip()
    for part in _PART.finditer(text):
        pattern += re.escape(text[end : part.start()])
        end = part.end()
        if part["any"]:
            pattern += ".*?"
        elif part["number"]:
            numbers.append(part["number"])
            pattern += f"({NUMBER.pattern})"
        else:
            pattern += r"\s+"
    found = re.fullmatch(pattern + re.escape(text[end:]), actual.strip(), flags=re.DOTALL)
    if found is None:
        return ["another text was printed"]
    pairs = zip(numbers, found.groups(), strict=True)
    return [f"{seen} instead of {wanted}" for wanted, seen in pairs if not near(wanted, seen)]


def near(wanted: str, seen: str) -> bool:
    """Whether two printed numbers agree."""
    a, b = (float(number.replace(",", "")) for number in (wanted, seen))
    decimals = wanted.partition("e")[0].partition(".")[2]
    unit = 10.0 ** -len(decimals) if decimals and "e" not in wanted else 0.0
    return abs(a - b) <= max(TOLERANCE * abs(a), 1.001 * unit)
