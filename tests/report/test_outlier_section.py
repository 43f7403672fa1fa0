"""The section on outliers: complete for every shape, escaped, and concluding what the record says."""

import html
import json
import math
import re
from pathlib import Path

import msgspec
import plotly.graph_objects as go
import pytest
from parsed_page import rendered

from quantriage.errors import QuantriageError
from quantriage.records.outliers import ErrorMap, Magnitudes
from quantriage.records.run_dir import OUTLIERS, RunDir
from quantriage.report import render
from quantriage.report.sections.outlier_captions import error_caption, tail_caption
from report.synthetic_outliers import outliers_of, write_outliers
from report.synthetic_run import GPT2, Shape

SHAPES = {
    "llama": Shape(),
    "gpt2 of one block": Shape(blocks=1, modules=GPT2, prefix="transformer.h"),
    "experts": Shape(blocks=2, experts=64),
}
CHARTS = ["outlier-errors", "outlier-map", "outlier-profile", "outlier-tails"]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028{{7*7}}<!--"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_has_every_picture_with_a_caption(tmp_path: Path, shape: Shape) -> None:
    page = rendered(write_outliers(tmp_path, shape))
    assert page.sections == ["outliers"]
    assert sorted(page.charts) == CHARTS
    for views in page.charts.values():
        for figure in views:
            go.Figure(figure)
            assert figure["data"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    captions = re.findall(r"<figcaption[^>]*>(.*?)</figcaption>", text)
    assert len(captions) == sum(map(len, page.charts.values()))
    assert all(len(caption.split()) > 6 and caption.endswith(".") for caption in captions)


def test_captions_carry_the_figures(tmp_path: Path) -> None:
    record = outliers_of(Shape())
    page = rendered(write_outliers(tmp_path))
    flagged = sum(w.warning for w in record.weights)
    assert f"{flagged} of 210 matrices" in page.text
    assert "uses 15% of its range for all others" in page.text  # 1 / 6.5
    assert "4 of 210 inputs hold a value over 100 times" in page.text  # 400, 200, 133, 100
    assert "few tokens make the outlier and a scale for each token contains it" in page.text
    assert "It grows most in block 0, from 16.0 to 512: that block writes it." in page.text
    assert "␣Grant" in page.text


def test_the_tail_is_the_share_beyond_each_edge(tmp_path: Path) -> None:
    record = outliers_of(Shape())
    curve = rendered(write_outliers(tmp_path)).charts["outlier-tails"][0]["data"][0]  # type: ignore[index]
    magnitudes = record.histograms[0].magnitudes
    edges = [edge / 0.02 for edge in magnitudes.edges()[:-1]]
    total = sum(magnitudes.counts) + magnitudes.zeros
    expected = [(e, sum(magnitudes.counts[i:]) / total) for i, e in enumerate(edges) if e >= 0.25]
    assert curve["x"] == pytest.approx([x for x, _ in expected])
    assert curve["y"] == pytest.approx([y for _, y in expected])
    gaussian = rendered(tmp_path).charts["outlier-tails"][0]["data"][-1]  # type: ignore[index]
    assert gaussian["y"][0] == pytest.approx(math.erfc(0.25 / math.sqrt(2)))


def test_the_profile_draws_every_input_and_of_experts_the_worst(tmp_path: Path) -> None:
    record = outliers_of(Shape(blocks=2, experts=8))
    large = msgspec.structs.replace(record.inputs[-1], ratio=32_630.0)
    RunDir(tmp_path).write(OUTLIERS, msgspec.structs.replace(record, inputs=(*record.inputs[:-1], large)))
    curves = rendered(tmp_path).charts["outlier-profile"][1]["data"]
    drawn = {(curve["name"], x): y for curve in curves for x, y in zip(curve["x"], curve["y"], strict=True)}  # type: ignore[attr-defined]
    assert max(drawn.values()) == 32_630.0
    assert len(drawn) == 2 * len(curves) == 2 * 7  # type: ignore[arg-type]


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    write_outliers(tmp_path, Shape(blocks=2))
    path = tmp_path / OUTLIERS
    text = path.read_text()
    for name in (
        "model.layers.0.self_attn.q_proj",
        "state before block 1",
        " Grant",
        "text.txt",
        "weight-outliers",
    ):
        assert name in text
        text = text.replace(name, json.dumps(HOSTILE)[1:-1])
    path.write_text(text)
    page = rendered(tmp_path)
    assert len(page.scripts) == 3
    assert "img" not in [tag for tag, _ in page.tags]
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert "<script>alert(1)</script>" in page.text
    assert "<" not in page.scripts[0]
    assert "\u2028" not in page.scripts[0]
    assert html.escape("<img src=x", quote=False) in json.dumps(page.charts)
    assert "<img" not in json.dumps(page.charts)


def test_weights_alone_and_nothing_to_draw(tmp_path: Path) -> None:
    whole = outliers_of(Shape(blocks=2), ratio=1.5)
    bare = msgspec.structs.replace(whole, inputs=(), states=(), histograms=(), maps=(), text="")
    RunDir(tmp_path).write(OUTLIERS, bare)
    page = rendered(tmp_path)
    assert sorted(page.charts) == ["outlier-map", "outlier-profile"]
    assert "no text was given" in page.text
    assert "No matrix reaches the warning at 2" in page.text
    RunDir(tmp_path).write(OUTLIERS, msgspec.structs.replace(bare, weights=(), conclusions=()))
    assert rendered(tmp_path).charts == {}


def test_the_captions_conclude_what_the_figures_say() -> None:
    def said(*rows: tuple[float, ...]) -> str:
        return error_caption(
            ErrorMap(site="s", scheme="w4a-g64", rows_per_cell=1, groups_per_cell=1, errors=rows)
        )

    assert "the error is even" in said((0.1, 0.11), (0.1, 0.12))
    assert "few groups of inputs carry it" in said((0.1, 0.1, 0.5), (0.1, 0.1, 0.6), (0.1, 0.1, 0.5))
    assert "few rows carry it" in said((0.1, 0.1), (0.1, 0.1), (0.5, 0.5))
    histogram = outliers_of(Shape()).histograms[0]

    def tail(counts: tuple[int, ...], sigmas: float) -> str:
        made = Magnitudes(zeros=0, first=480, counts=counts)  # from one sigma on
        one = 2.0**-7
        return tail_caption(
            [msgspec.structs.replace(histogram, magnitudes=made, std=one, maximum=sigmas * one)]
        )

    assert "at 1.70 sigma; its tail is about a Gaussian's" in tail((1000, 900, 10), 1.7)
    assert "few single values set its range" in tail((9000, 900, *[0] * 20, 1), 45)
    assert "heavy as a whole" in tail((900, 900, *[0] * 10, 90), 9)


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    write_outliers(tmp_path, Shape(blocks=1))
    path = tmp_path / OUTLIERS
    path.write_text(path.read_text().replace('"unreached"', '"unknown"'))
    with pytest.raises(QuantriageError, match="unknown field `unknown`"):
        render(tmp_path)
