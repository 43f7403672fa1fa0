"""The page as a whole: self-contained, escaped, complete for every shape, its captions computed."""

import html
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import plotly.graph_objects as go
import pytest
from parsed_page import Page, rendered
from synthetic_run import GPT2, KL, Shape, sites_of, write_run

from quantriage.errors import QuantriageError
from quantriage.records.run_dir import (
    CORRELATIONS,
    DIAGNOSIS,
    LOCK,
    MIXES,
    PLAN,
    PROOF,
    QUANTIZED,
    SENSITIVITY,
    SITES,
    SUMMARY,
    RunDir,
)
from quantriage.records.types import Interval, Proof, RunSummary, Sensitivity
from quantriage.report import render

SHAPES = {
    "llama": Shape(),
    "six blocks, no swaps": Shape(blocks=6, swap=False),
    "gpt2 of one block": Shape(blocks=1, modules=GPT2, prefix="transformer.h"),
    "experts": Shape(blocks=2, experts=64),
}
RECOVERY = ["verdict", "metrics", "layers", "tradeoff", "sensitivity", "text-errors", "rounding", "reproduce"]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028{{7*7}}<!--"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return rendered(write_run(tmp_path_factory.mktemp("dense")))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_has_every_section_and_valid_figures(tmp_path: Path, shape: Shape) -> None:
    page = rendered(write_run(tmp_path, shape))
    assert page.sections == RECOVERY
    boxes = [a["data-chart"] for _, a in page.tags if "data-chart" in a]
    assert sorted(boxes) == sorted(page.charts)
    for views in page.charts.values():
        for figure in views:
            go.Figure(figure)  # plotly's own validation of every property
            assert figure["data"]


def test_the_map_has_a_cell_for_each_block_and_module_and_experts_in_one(tmp_path: Path) -> None:
    shape = Shape(blocks=3, experts=8)
    heat = rendered(write_run(tmp_path, shape)).charts["layer-map"][0]["data"][0]  # type: ignore[index]
    assert [len(row) for row in heat["z"]] == [7, 7, 7]
    assert all(value is not None for row in heat["z"] for value in row)
    sites = sites_of(shape)
    assert len(sites) == 3 * (4 + 3 * 8)
    worst = max(
        row.swap_kl or 0.0
        for row in RunDir(tmp_path).read_many(SENSITIVITY, Sensitivity)
        if row.scheme == "w4a-g64" and row.site.startswith("model.layers.2.mlp") and "down" in row.site
    )
    assert 10 ** heat["z"][2][6] == pytest.approx(worst, rel=1e-9)  # log10 and back
    assert "8 experts" in heat["customdata"][2][6]


def test_nothing_is_loaded_from_anywhere(dense: Page) -> None:
    for tag, attributes in dense.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("#"), (tag, value)
        assert tag not in {"link", "iframe", "object", "embed", "base"}
    policy = next(a["content"] for t, a in dense.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy
    assert "http" not in policy


def test_the_file_is_small_and_quick(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    began = time.process_time()
    path = render(folder)
    assert time.process_time() - began < 3
    assert path.stat().st_size < 4_000_000
    assert render(folder).read_bytes() == path.read_bytes()


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path, Shape(blocks=2), title=HOSTILE)
    for name in (SITES, SENSITIVITY, DIAGNOSIS, QUANTIZED, PROOF, MIXES, SUMMARY, LOCK):
        path = folder / name
        text = path.read_text().replace("model.layers.1.mlp.down_proj", json.dumps(HOSTILE)[1:-1])
        path.write_text(
            text.replace("gptq w4a-g64", json.dumps(HOSTILE)[1:-1]).replace(" Grant", "</mark><b>")
        )
    page = rendered(folder)
    assert len(page.scripts) == 3  # the charts, the library, the page's own
    assert "img" not in [tag for tag, _ in page.tags]
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert "<script>alert(1)</script>" in page.text  # shown as text, once parsed
    raw = page.scripts[0]
    assert "<" not in raw
    assert "\u2028" not in raw
    shown = html.escape("<img src=x", quote=False)
    assert shown in json.dumps(page.charts)  # escaped a second time for plotly, which reads tags
    assert "<img" not in json.dumps(page.charts)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ([SENSITIVITY], ["sensitivity"]),
        ([SITES, SENSITIVITY, DIAGNOSIS, CORRELATIONS], ["layers", "sensitivity"]),
        ([PLAN], ["rounding", "reproduce"]),
        ([PROOF], ["metrics", "tradeoff", "text-errors"]),
        ([LOCK], ["reproduce"]),
        ([QUANTIZED], ["rounding"]),
        ([MIXES], ["tradeoff"]),
        ([SUMMARY], ["verdict", "rounding", "reproduce"]),
    ],
)
def test_sections_without_records_are_left_out(tmp_path: Path, kept: list[str], expected: list[str]) -> None:
    folder = write_run(tmp_path, Shape(blocks=2))
    if kept == [PLAN]:
        expected = ["reproduce"]  # a plan without findings has nothing to say about rounding
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    page = rendered(folder)
    assert page.sections == expected


def test_a_folder_without_records_or_with_a_bad_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantriageError, match="no records in it"):
        render(tmp_path)
    (tmp_path / MIXES).write_text('[{"label": 1}]')
    with pytest.raises(QuantriageError, match=r"mixes\.json: field '\[0\]\.label'"):
        render(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_captions_carry_the_computed_figures(dense: Page, tmp_path: Path) -> None:
    rows = RunDir(write_run(tmp_path)).read_many(SENSITIVITY, Sensitivity)
    swaps = sorted(((r.swap_kl or 0.0, r.site) for r in rows if r.scheme == "w4a-g64"), reverse=True)
    total, carried, count = sum(v for v, _ in swaps), 0.0, 0
    while carried < total / 2:
        carried += swaps[count][0]
        count += 1
    assert f"{count} sites of 210 carry" in dense.text
    top = sum(v for v, _ in swaps[:20]) / total
    assert f"these 20 of 210 sites carry {100 * top:.0f}% of a total of {total:.3f}" in dense.text
    assert f"{swaps[0][1]} is the most sensitive" in dense.text
    gain = 1 - KL["mix 4.50"] / KL["gptq w4a-g64"]
    assert f"mix 4.50 is the lowest at 0.0610, {100 * gain:.0f}% below gptq w4a-g64" in dense.text
    recovered = 1 - KL["mix 4.50"] / KL["rtn w4a-g64"]
    assert f"recovered of plain rounding's loss {100 * recovered:.0f}%" in dense.text
    shipped = RunDir(tmp_path).read(PROOF, Proof).results[-1]
    ratio = shipped.kl_by_position[0] / shipped.kl_by_position[-1]
    assert f"KL is {ratio:.2f} times as high at the start" in dense.text
    assert "Spearman 0.93 at w4a-g64" in dense.text


@pytest.mark.parametrize(("proven", "words"), [(True, "Proven"), (False, "Not proven")])
def test_the_verdict_says_whether_it_is_proven(tmp_path: Path, proven: bool, words: str) -> None:
    folder = write_run(tmp_path, Shape(blocks=1))
    path = folder / SUMMARY
    path.write_text(path.read_text().replace('"proven": true', f'"proven": {str(proven).lower()}'))
    assert RunDir(folder).read(SUMMARY, RunSummary)
    page = rendered(folder)
    state = "proven" if proven else "unproven"
    assert any(a.get("class") == f"verdict {state}" for _, a in page.tags)
    assert f" {words} " in page.text


def test_a_measured_run_without_verdict_or_shipped_model_is_a_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path, Shape(blocks=2))
    path = folder / SUMMARY
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"verdict": None, "stages": [], "budget": None}))
    (folder / PROOF).write_text((folder / PROOF).read_text().replace('"candidate"', '"mix"'))
    page = rendered(folder)
    assert "No verdict" in page.text
    assert "This run wrote a checkpoint and did not prove it" in page.text
    assert "Nothing was shipped" in page.text
    assert "text-errors" not in [a.get("id") for _, a in page.tags]
    lock = json.loads((folder / LOCK).read_text())
    (folder / LOCK).write_text(json.dumps(lock | {"output_files": {}}))
    assert "This run measured, but did not ship and prove a checkpoint" in rendered(folder).text


def test_zero_figures_draw_no_logarithm_of_zero(tmp_path: Path) -> None:
    """A tiny or already quantized model can lose exactly nothing."""
    folder = write_run(tmp_path, Shape(blocks=2))
    for name in (SENSITIVITY, MIXES, PROOF, QUANTIZED):
        path = folder / name
        keys = "fisher|swap_kl|predicted_kl|objective|rtn_objective|relative|kl|value|low|high"
        path.write_text(re.sub(rf'"({keys})": -?[\d.e-]+', r'"\1": 0.0', path.read_text()))
    proof = RunDir(folder).read(PROOF, Proof)
    one = Interval(value=1.0, low=1.0, high=1.0)
    RunDir(folder).write(PROOF, msgspec.structs.replace(proof, reference_perplexity=one))
    page = rendered(folder)
    assert "No site loses anything at w4a-g64." in page.text
    for views in page.charts.values():
        for figure in views:
            go.Figure(figure)


def test_rendering_imports_no_torch(tmp_path: Path) -> None:
    folder = write_run(tmp_path, Shape(blocks=1))
    code = (
        "import sys; from pathlib import Path; from quantriage.report import render;"
        f"render(Path({str(folder)!r})); heavy = ('torch', 'transformers', 'scipy');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
