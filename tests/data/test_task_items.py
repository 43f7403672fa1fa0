"""Rows of the seven layouts to prompts and choices, and files that must be refused."""

import json
from pathlib import Path

import pytest

from quantriage.data import task_items
from quantriage.data.task_items import LAYOUTS, read_task
from quantriage.errors import DataError

# What lm-evaluation-harness 0.4.13 asks for these rows: the output of benchmarks/tasks_oracle_harness.py.
ROWS: dict[str, tuple[dict[str, object], list[tuple[str, str]], tuple[int, ...] | None, int]] = {
    "hellaswag": (
        {
            "activity_label": "Roof  repair",
            "ctx_a": "[header] How to mend [title] Look up. [step] A man sits.",
            "ctx_b": "he Then",
            "endings": [" goes  down. ", "falls [substeps] off.", "x", "sings"],
            "label": "2",
        },
        [
            ("Roof repair: How to mend. Look up. A man sits. He then", " goes down."),
            ("Roof repair: How to mend. Look up. A man sits. He then", " falls off."),
            ("Roof repair: How to mend. Look up. A man sits. He then", " x"),
            ("Roof repair: How to mend. Look up. A man sits. He then", " sings"),
        ],
        (10, 10, 1, 5),
        2,
    ),
    "piqa": (
        {"goal": "dresser", "sol1": "replace drawer ", "sol2": "finish", "label": 1},
        [
            ("Question: dresser\nAnswer:", " replace drawer "),
            ("Question: dresser\nAnswer:", " finish"),
        ],
        (15, 6),
        1,
    ),
    "arc": (
        {"question": "Why?", "choices": {"text": ["so", "é"], "label": ["1", "2"]}, "answerKey": "2"},
        [("Question: Why?\nAnswer:", " so"), ("Question: Why?\nAnswer:", " é")],
        (2, 1),
        1,
    ),
    "openbookqa": (
        {
            "question_stem": "Sun is",
            "choices": {"text": ["hot", "cold"], "label": ["A", "B"]},
            "answerKey": " A",
        },
        [("Sun is", " hot"), ("Sun is", " cold")],
        (3, 4),
        0,
    ),
    "sciq": (
        {
            "question": "Who?",
            "support": "  One did. ",
            "distractor1": "a",
            "distractor2": "bb",
            "distractor3": "c",
            "correct_answer": "dd",
        },
        [("One did. \nQuestion: Who?\nAnswer:", f" {c}") for c in ("a", "bb", "c", "dd")],
        (1, 2, 1, 2),
        3,
    ),
    "winogrande": (
        {"sentence": "It hit Al so _ ran  off .", "option1": "Al", "option2": "Bo", "answer": "2"},
        [("It hit Al so Al", " ran  off ."), ("It hit Al so Bo", " ran  off .")],
        None,
        1,
    ),
    "choices": (
        {"query": "2 + 2 =", "choices": ["3", "4", "22"], "gold": 1},
        [("2 + 2 =", " 3"), ("2 + 2 =", " 4"), ("2 + 2 =", " 22")],
        (1, 1, 2),
        1,
    ),
}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_told_by_its_fields_and_asks_what_the_harness_asks(layout: str, tmp_path: Path) -> None:
    row, pairs, lengths, gold = ROWS[layout]
    task = read_task(str(write(tmp_path / "some.jsonl", row | {"more": 1})), 0)
    assert (task.name, task.layout, task.available) == ("some", layout, 1)
    (item,) = task.items
    assert list(item.pairs) == pairs
    assert (item.lengths, item.gold, item.row) == (lengths, gold, 1)


def test_the_sample_is_the_same_each_time_in_the_order_of_the_file_and_spread_over_it(tmp_path: Path) -> None:
    rows = [{"query": f"q{i}", "choices": ["a", "b"], "gold": i % 2} for i in range(300)]
    path = write(tmp_path / "many.jsonl", *rows)
    first, again = read_task(str(path), 40), read_task(str(path), 40)
    assert first == again
    asked = [item.row for item in first.items]
    assert len(set(asked)) == 40
    assert asked == sorted(asked)
    assert asked[0] < 60
    assert asked[-1] > 240
    assert [item.pairs[0][0] for item in first.items] == [f"q{row - 1}" for row in asked]
    assert len(read_task(str(path), 0).items) == len(read_task(str(path), 999).items) == 300


def test_a_name_is_a_label_or_a_layout(tmp_path: Path) -> None:
    path = write(tmp_path / "a=b.jsonl", ROWS["arc"][0])
    assert read_task(str(path), 0).name == "a=b"
    assert read_task(f"arc_easy={path}", 0).name == "arc_easy"
    with pytest.raises(DataError, match="'goal' is nothing; expected a text"):
        read_task(f"piqa={write(tmp_path / 'c.jsonl', {'sol1': 'a', 'sol2': 'b'})}", 0)


def changed(layout: str, **fields: object) -> dict[str, object]:
    return ROWS[layout][0] | fields


REFUSED: dict[str, tuple[str, str]] = {
    "no rows": ("\n\n", "no rows; expected one JSON object a line"),
    "not JSON": ("{'a': 1}\n", "line 1: not valid JSON"),
    "deep": ("[" * 50_000 + "\n", "line 1: not valid JSON"),
    "no object": ("[1]\n", "found list, expected an object"),
    "half a surrogate": ('{"query": "\\ud800", "choices": ["a", "b"], "gold": 0}\n', "not valid JSON"),
    "not UTF-8": ('{"query": "\udcff"}\n', "not valid JSON"),
    "unknown fields": ('{"prompt": "a"}\n', "rows with 'prompt'; expected the fields of a known task"),
    "long line": (json.dumps(changed("piqa", goal="a" * 70_000)) + "\n", "line 1: longer than 64000 bytes"),
    "prompt of another type": (json.dumps(changed("piqa", goal=["a"])), "'goal' is .* expected a text"),
    "blank choice": (json.dumps(changed("piqa", sol2=" ")), "'sol2' is ' '; expected a text"),
    "too many choices": (json.dumps(changed("choices", choices=["a"] * 27)), "2 to 26 texts"),
    "one choice": (json.dumps(changed("hellaswag", endings=["a"])), "'endings' is .*2 to 26 texts"),
    "choices of numbers": (json.dumps(changed("choices", choices=[1, 2])), "2 to 26 texts"),
    "labels missing": (json.dumps(changed("arc", choices={"text": ["a", "b"]})), "as many labels as texts"),
    "unknown answer": (json.dumps(changed("arc", answerKey="C")), "expected one of the labels 1, 2"),
    "gold beyond": (json.dumps(changed("piqa", label=2)), "'label' is 2; expected 0 to 1"),
    "gold true": (json.dumps(changed("piqa", label=True)), "'label' is True; expected 0 to 1"),
    "no answers": (json.dumps(changed("hellaswag", label="")), "a test split without answers"),
    "answers from 1": (json.dumps(changed("winogrande", answer="0")), "expected 1 to 2"),
    "no blank": (json.dumps(changed("winogrande", sentence="None here.")), "a blank written as _"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_file_is_refused_with_its_line_and_what_was_expected(case: str, tmp_path: Path) -> None:
    text, message = REFUSED[case]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(text.encode("utf-8", errors="surrogateescape"))
    with pytest.raises(DataError, match=message) as caught:
        read_task(str(path), 0)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 900


def test_a_missing_file_a_folder_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_task(str(tmp_path / "none.jsonl"), 0)
    with pytest.raises(DataError, match="cannot be read"):
        read_task(str(tmp_path), 0)
    huge = tmp_path / "huge.jsonl"
    with huge.open("wb") as file:
        file.truncate(task_items.LARGEST_FILE + 1)  # sparse: no disk is used
    with pytest.raises(DataError, match="at most 256000000 are read"):
        read_task(str(huge), 0)
