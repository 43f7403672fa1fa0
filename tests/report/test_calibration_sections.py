"""The sections of calibration: complete, escaped, and saying what the records say."""

from pathlib import Path

import plotly.graph_objects as go
import pytest
from parsed_page import Page, rendered
from synthetic_calibration import matrix_of, write_calibration
from synthetic_run import GPT2, Shape

from quantriage.records.calibration import MATRIX, SET
from quantriage.records.run_dir import RunDir

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028{{7*7}}<!--"
SHAPES = {
    "llama": Shape(blocks=3),
    "gpt2 of one block": Shape(blocks=1, modules=GPT2, prefix="transformer.h"),
    "experts": Shape(blocks=2, experts=16),
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return rendered(write_calibration(tmp_path_factory.mktemp("calibration"), Shape(blocks=3)))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_has_both_sections_and_valid_figures(tmp_path: Path, shape: Shape) -> None:
    found = rendered(write_calibration(tmp_path, shape))
    assert found.sections == ["calibration", "calibration-coverage"]
    assert set(found.charts) == {
        "calibration-matrix",
        "calibration-predictions",
        "coverage-map",
        "coverage-gains",
    }
    for views in found.charts.values():
        for figure in views:
            go.Figure(figure)  # plotly's own validation of every property
            assert figure["data"]


def test_captions_say_what_to_conclude(page: Page) -> None:
    assert "On each of" not in page.text or "2 domains" not in page.text
    assert "random tokens lose more than every text on 3 of 3 domains" in page.text
    assert "Random tokens are the worst calibration on 3 of 3 domains" in page.text
    assert "On each of 3 domains text of the same kind is the best calibration" in page.text
    assert "29 passages of 490 (5.9%) add nothing, most as near duplicate in prose.txt" in page.text
    assert "goes from 0.52 to 0.38, for certain" in page.text
    assert "3 windows of production would halve the mismatch in the worst directions" in page.text
    assert "The worst prompt lies 3.00 times as far out" in page.text


def test_a_covered_set_says_so_and_gives_the_command(tmp_path: Path) -> None:
    found = rendered(write_calibration(tmp_path, Shape(blocks=2), covered=True))
    assert "No test tells the two apart, and no input gets what calibration lacks" in found.text
    assert "No input is in alarm; the highest ratio is 1.00." in found.text
    assert "quantriage calibration check MODEL prose.txt support.jsonl --run RUN --fix" in found.text


def test_a_text_that_another_beats_on_its_own_domain_is_named(tmp_path: Path) -> None:
    matrix = matrix_of()
    names = ("code", "prose", matrix.domain_names[2])
    cells = [
        type(c)(
            **{f: getattr(c, f) for f in c.__struct_fields__}
            | {"domain": names[matrix.domain_names.index(c.domain)]}
        )
        for c in matrix.cells
    ]
    fields = {f: getattr(matrix, f) for f in matrix.__struct_fields__}
    RunDir(tmp_path).write(MATRIX, type(matrix)(**fields | {"domain_names": names, "cells": tuple(cells)}))
    found = rendered(tmp_path)
    assert "chats of the support desk: text of the same kind is best; on code and prose another text" in (
        found.text[:1].lower() + found.text[1:]
    ).replace("Chats", "chats")


def test_the_matrix_shows_every_cell_in_its_place(page: Page) -> None:
    kl = page.charts["calibration-matrix"][1]["data"][0]  # type: ignore[index]
    matrix = matrix_of()
    cells = {(cell.set, cell.domain): cell.kl.value for cell in matrix.cells}
    for row, of_set in zip(kl["text"], matrix.sets, strict=True):
        for text, domain in zip(row, matrix.domain_names, strict=True):
            assert float(text) == pytest.approx(cells[of_set.name, domain], rel=6e-3)  # three digits
    assert all(0 <= shade <= 1 for row in kl["z"] for shade in row)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    found = rendered(write_calibration(tmp_path, Shape(blocks=2), hostile=HOSTILE))
    assert all(tag != "img" for tag, _ in found.tags)
    assert sum(tag == "script" for tag, _ in found.tags) == 3
    assert "{{7*7}}" in found.text


def test_a_set_alone_is_a_section_of_its_own(tmp_path: Path) -> None:
    run = RunDir(write_calibration(tmp_path, Shape(blocks=1)))
    for name in (MATRIX, "calibration-check.json"):
        run.file(name).unlink()
    assert run.has(SET)
    found = rendered(tmp_path)
    assert found.sections == ["calibration"]
    assert found.charts == {}
