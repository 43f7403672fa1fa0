"""The demo's texts from a synthetic suite: passages once, no prompts, no document on both sides."""

import gzip
import json
import zipfile
from pathlib import Path

import pytest

from quantriage.workflows.demo_text import DOMAINS, ROOT, SHARED_WORDS, Side, build_texts

LEAKED = "one run of plain words that stands in a novel and in an article as well"


def sentence(*parts: object) -> str:
    """Prose that no other call gives: the words carry its parts."""
    return (
        " ".join(f"{word}{'x'.join(map(str, parts))}" for word in ("The", "old", "boat", "sank", "at")) + "."
    )


def boolq(title: int, passage: int) -> dict[str, object]:
    text = f"``{sentence('wiki', title, passage)}''"
    return {"query": f"Title {title} -- {text}\nQuestion: is it so?\nAnswer:"}


def rows(task: str) -> list[dict[str, object]]:
    if task.startswith("boolq"):
        # Ten titles: whatever their hashes, some would land in evaluation.
        leaks = [{"query": f"Leak {n} -- {LEAKED}.\nQuestion: is it so?\nAnswer:"} for n in range(10)]
        return [boolq(title, passage) for title in range(60) for passage in (0, 0, 1)] + leaks
    if task.startswith("squad"):
        return [
            {
                "title": f"Title_{n}",
                "query": f"Title: Title_{n}\nBackground: {sentence('squad', n)}\nQuestion: a\n",
            }
            for n in range(60)
        ]
    if task.startswith("coqa"):
        sources = ["cnn", "wikipedia"]
        return [
            {"source": source, "story": f"{sentence(source, n)} \n\nEnd.", "query": "Passage: no"}
            for n in range(40)
            for source in sources
        ]
    if task.startswith("lambada"):
        return [
            {"query": f"{sentence('novel', n)} He saw the", "answers_text": ["sea"]} for n in range(20)
        ] + [{"query": LEAKED, "answers_text": ["too"]}]
    if task.startswith("minerva"):
        asy = {"problem": f"Draw {task}", "solution": "[asy]draw();[/asy]"}
        return [
            {"problem": f"Find ${task}+{n}$.", "solution": f"It is $\\boxed{{{n}}}$."} for n in range(3)
        ] + [asy]
    return [{"code": f"def {task.split('/')[0]}_{n}():\r\n\treturn {n}\r\n"} for n in range(3)]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "suite.whl"
    with zipfile.ZipFile(path, "w") as bag:
        for task in (task for domain in DOMAINS for task in domain.tasks):
            lines = "".join(json.dumps({"doc": row, "request": "few-shot"}) + "\n" for row in rows(task))
            bag.writestr(f"{ROOT}/{task}/requests.jsonl.gz", gzip.compress(lines.encode()))
    return path


@pytest.fixture
def texts(suite: Path) -> dict[Side, str]:
    return build_texts(suite)


def test_passages_without_prompts_and_once(texts: dict[Side, str]) -> None:
    for text in texts.values():
        for word in (
            "Question:",
            "Answer:",
            "Background:",
            "Passage:",
            "``",
            "[asy]",
            "\t",
            "\r",
            "few-shot",
        ):
            assert word not in text
        passages = text.strip().split("\n\n")
        assert all(passage.strip() for passage in passages)
        prose = [passage for passage in passages if passage.startswith(('"The', "The"))]
        assert len(prose) == len(set(prose)) > 20


def test_a_title_stays_on_one_side_in_every_source(texts: dict[Side, str]) -> None:
    sides = []
    for n in range(60):
        marks = [f"The{'x'.join(('wiki', str(n), str(p)))} " for p in (0, 1)] + [f"Thesquadx{n} "]
        holding = {side for side, text in texts.items() for mark in marks if mark in text}
        assert len(holding) == 1, (n, holding)
        sides += holding
    assert set(sides) == {"calibration", "evaluation"}


def test_evaluation_shares_no_run_of_words(texts: dict[Side, str]) -> None:
    assert len(LEAKED.split()) > SHARED_WORDS
    assert LEAKED in texts["calibration"]
    assert LEAKED not in texts["evaluation"]


def test_domains_reach_their_side(texts: dict[Side, str]) -> None:
    assert "He saw the sea." in texts["calibration"]
    assert "def mt_mbpp_rust_1():\n    return 1" in texts["calibration"]
    assert "\\boxed" in texts["calibration"]
    for word in ("He saw the sea", "def ", "\\boxed"):
        assert word not in texts["evaluation"]
    assert not any("Thewikipedia" in text for text in texts.values())


def test_the_same_suite_gives_the_same_bytes(suite: Path, texts: dict[Side, str]) -> None:
    assert build_texts(suite) == texts
