"""The sections of speed and of advice: complete, escaped, and saying what the records say."""

from pathlib import Path

import plotly.graph_objects as go
import pytest
from msgspec.structs import replace
from parsed_page import Page, rendered
from synthetic_bench import bench_of

from quantriage.records.advice import Advice, Constraints, Figure, Rejected, Strategy
from quantriage.records.run_dir import ADVICE, BENCH, RunDir

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028{{7*7}}<!--"
SOURCE = "https://example.org/table"


def strategy(rank: int, title: str, kl: float | None, total: int) -> Strategy:
    return Strategy(
        rank=rank,
        id=f"s{rank}",
        title=title,
        engine="vllm",
        bits=4.5,
        weight_bytes=total - 100,
        cache_bytes=100,
        total_bytes=total,
        quality=Figure(basis="expected" if kl else "unknown", text="words", value=kl, source=SOURCE),
        speed=Figure(basis="measured", text="decode 1.5 times", value=1.5, source="runs/bench"),
        commands=(f"vllm serve {title}",),
        why="faster than the next",
    )


def advice_of(name: str = "four bits") -> Advice:
    return Advice(
        model=name,
        digest="",
        weights=135_000_000,
        constraints=Constraints(
            memory_bytes=10**9,
            hardware="cpu",
            engine="any",
            context=2048,
            sequences=1,
            priority="latency",
            quality="good",
        ),
        strategies=(
            strategy(1, name, 0.03, 9 * 10**8),
            strategy(2, "five bits", 0.02, 95 * 10**7),
            strategy(3, "unmeasured", None, 10**8),
        ),
        rejected=(Rejected(id="x", title=name, engine="vllm", total_bytes=None, reasons=(f"not {name}",)),),
        notes=(f"a note about {name}",),
        sentence=f"{name} in vllm.",
    )


@pytest.fixture
def page(tmp_path: Path) -> Page:
    RunDir(tmp_path).write(BENCH, bench_of())
    RunDir(tmp_path).write(ADVICE, advice_of())
    return rendered(tmp_path)


def test_both_sections_stand_with_valid_figures_and_no_card_about_a_verdict(page: Page) -> None:
    assert page.sections == ["bench", "advice"]
    assert sorted(page.charts) == ["advice-chart", "bench-chart"]
    for views in page.charts.values():
        for view in views:
            go.Figure(view)
    assert len(page.charts["bench-chart"]) == 4


def test_slower_is_said_with_its_reason_and_how_it_is_known(page: Page) -> None:
    assert "Slower in decode" in page.text
    assert "decompressed-on-load" in page.text
    assert "measured here" in page.text
    assert "no kernel small-w4" in page.text
    # 18 against 30 tokens a second, intervals apart
    assert (
        "the best unquantized one, small (dense), 30.0: 0.600 times as much, so quantizing does" in page.text
    )
    assert "does not pay here." in page.text


def test_bars_begin_at_zero_and_carry_their_intervals(page: Page) -> None:
    layout = page.charts["bench-chart"][0]["layout"]
    assert layout["xaxis"]["range"][0] == 0  # type: ignore[index]
    bars = page.charts["bench-chart"][0]["data"]
    by_name = {bar["name"]: bar for bar in bars}  # type: ignore[union-attr]
    assert by_name["quantized"]["x"] == [18.0]
    assert by_name["quantized"]["error_x"]["array"] == [pytest.approx(1.8)]


def test_advice_marks_the_basis_of_each_figure_and_links_its_source(page: Page) -> None:
    assert "First choice" in page.text
    links = [a["href"] for tag, a in page.tags if tag == "a" and a.get("href", "").startswith("https")]  # type: ignore[union-attr]
    assert links == [SOURCE] * 3
    for word in ("expected", "measured", "unknown", "Why the others lost", "vllm serve four bits"):
        assert word in page.text
    assert "five bits loses least (0.0200), four bits is the smallest" in page.text
    drawn = page.charts["advice-chart"][0]["data"]
    assert sum(len(trace["x"]) for trace in drawn) == 2  # type: ignore[union-attr]


def test_nothing_that_fits_is_said(tmp_path: Path) -> None:
    RunDir(tmp_path).write(ADVICE, replace(advice_of(), strategies=(), sentence="Nothing known here."))
    page = rendered(tmp_path)
    assert "Nothing fits" in page.text
    assert "advice-chart" not in page.charts


def test_hostile_names_stay_names(tmp_path: Path) -> None:
    RunDir(tmp_path).write(BENCH, bench_of(HOSTILE))
    RunDir(tmp_path).write(ADVICE, advice_of(HOSTILE))
    page = rendered(tmp_path)
    assert not [a for tag, a in page.tags if tag == "img" or "onerror" in a]
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 3
    assert "alert(1)" in page.text
    assert "49" not in page.text.split("alert(2)")[1][:20]
