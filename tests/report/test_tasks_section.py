"""The section of tasks: complete, escaped, and saying what the record says."""

from pathlib import Path

import plotly.graph_objects as go
import pytest
from parsed_page import Page, rendered

from quantriage.data.task_items import TaskItem, TaskSet
from quantriage.evaluate.task_summary import task_result, task_run
from quantriage.records.run_dir import RunDir
from quantriage.records.tasks import TASKS, TaskRun

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028{{7*7}}<!--"
RIGHT, WRONG = (-1.0, -2.0), (-2.0, -1.0)


def run_of(*tasks: tuple[str, int, int]) -> TaskRun:
    """Tasks by name, answers lost and answers won, of 200 items."""
    results = []
    for name, lost, won in tasks:
        items = (TaskItem(1, (("q", " a"), ("q", " b")), (1, 1), 0),) * 200
        before = [RIGHT] * lost + [WRONG] * won + [RIGHT] * (200 - lost - won)
        after = [WRONG] * lost + [RIGHT] * won + [RIGHT] * (200 - lost - won)
        results.append(task_result(TaskSet(name, "choices", f"{name}.jsonl", "d", 900, items), before, after))
    return task_run(results)


def page_of(folder: Path, run: TaskRun) -> Page:
    RunDir(folder).write(TASKS, run)
    return rendered(folder)


def test_the_figures_of_the_record_are_on_the_page(tmp_path: Path) -> None:
    run = run_of(("piqa", 30, 8), ("arc_easy", 5, 4))
    page = page_of(tmp_path, run)
    assert page.sections == ["tasks"]
    assert run.sentence in page.text
    for said in ("piqa", "arc_easy", "all of them", "−11.0", "beyond chance", "within chance", "200 of 900"):
        assert said in page.text, said
    assert "35 were right and are now wrong, 12 the reverse" in page.text
    assert "worse beyond chance in piqa, all of them" in page.text


def test_a_tie_says_what_would_not_show(tmp_path: Path) -> None:
    page = page_of(tmp_path, run_of(("piqa", 3, 3)))
    assert "a loss below 3.0 points would not show" in page.text
    assert "could not have shown one below 3.0 points" in page.text
    assert "all of them" not in page.text


def test_identical_models_changed_nothing(tmp_path: Path) -> None:
    assert "none of these was or became right" in page_of(tmp_path, run_of(("piqa", 0, 0))).text


@pytest.mark.parametrize("counts", [(0, 0), (30, 8)])
def test_the_chart_is_plotly_s(tmp_path: Path, counts: tuple[int, int]) -> None:
    (drawn,) = page_of(tmp_path, run_of(("piqa", *counts))).charts["task-differences"]
    assert go.Figure(drawn).data[0].x[0] == pytest.approx(-100 * (counts[0] - counts[1]) / 200)


def test_a_hostile_name_stays_a_name(tmp_path: Path) -> None:
    page = page_of(tmp_path, run_of((HOSTILE, 9, 1)))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert len(page.scripts) == len([tag for tag, _ in page.tags if tag == "script"])
    assert "alert(1)" not in "".join(page.scripts[1:])
    assert "<img" not in str(page.charts)
