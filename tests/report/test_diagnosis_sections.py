"""The sections of a diagnosis: complete, escaped, and saying what the records say."""

import html
import json
import re
from pathlib import Path

import plotly.graph_objects as go
import pytest
from parsed_page import Page, rendered
from synthetic_diagnosis import (
    THREAD,
    attribution_of,
    bisection_of,
    broken,
    candidate_of,
    lint_of,
    repair_of,
    split_of,
    write_diagnosis,
)
from synthetic_run import GPT2, Shape, write_run

from quantriage.errors import QuantriageError
from quantriage.records.diagnosis import Attribution, Lint, UnitAttribution
from quantriage.records.run_dir import (
    ATTRIBUTION,
    BISECTION,
    CANDIDATE,
    LINT,
    REPAIR,
    SPLIT,
    SUMMARY,
    RunDir,
)
from quantriage.records.types import Interval
from quantriage.report.sections import SECTIONS

DIAGNOSIS = ["candidate", "lint", "differences", "attribution", "bisection", "split", "repair"]
RECORDS = (LINT, ATTRIBUTION, BISECTION, SPLIT, CANDIDATE, REPAIR)
SHAPES = {
    "llama": Shape(),
    "gpt2 of one block": Shape(blocks=1, modules=GPT2, prefix="transformer.h"),
    "experts": Shape(blocks=2, experts=64),
}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028{{7*7}}<!--"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return rendered(write_diagnosis(tmp_path_factory.mktemp("diagnosis")))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_has_every_section_and_valid_figures(tmp_path: Path, shape: Shape) -> None:
    page = rendered(write_diagnosis(tmp_path, shape))
    assert page.sections == DIAGNOSIS
    boxes = [a["data-chart"] for _, a in page.tags if "data-chart" in a]
    assert sorted(boxes) == sorted(page.charts) == sorted(set(boxes))
    for views in page.charts.values():
        for figure in views:
            go.Figure(figure)
            assert figure["data"]


def test_every_picture_has_a_caption(tmp_path: Path) -> None:
    folder = write_diagnosis(tmp_path, Shape(blocks=2))
    views = sum(len(found) for found in rendered(folder).charts.values())
    text = (folder / "report.html").read_text(encoding="utf-8")
    captions = re.findall(r"<figcaption[^>]*>(.*?)</figcaption>", text)
    assert len(captions) == views
    assert all(len(caption.split()) > 6 and caption.endswith(".") for caption in captions)


def test_a_diagnosis_beside_a_recovery_shows_both(tmp_path: Path) -> None:
    write_diagnosis(write_run(tmp_path, Shape(blocks=3)), Shape(blocks=3))
    recovery = {
        "verdict",
        "metrics",
        "layers",
        "tradeoff",
        "sensitivity",
        "text-errors",
        "rounding",
        "reproduce",
    }
    assert rendered(tmp_path).sections == [name for name in SECTIONS if name in {*DIAGNOSIS, *recovery}]


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (LINT, ["lint", "differences"]),
        (ATTRIBUTION, ["attribution"]),
        (BISECTION, ["bisection"]),
        (SPLIT, ["split"]),
        (CANDIDATE, ["candidate"]),
        (REPAIR, ["repair"]),
    ],
)
def test_each_record_alone_is_a_report(tmp_path: Path, kept: str, expected: list[str]) -> None:
    folder = write_diagnosis(tmp_path, Shape(blocks=2))
    for name in RECORDS:
        if name != kept:
            (folder / name).unlink()
    assert rendered(folder).sections == expected


def test_a_healthy_lint_without_a_reference_is_a_report(tmp_path: Path) -> None:
    lint = Lint(
        candidate="model.gguf",
        reference=None,
        layout="GGUF",
        sites=1,
        bytes=1000,
        seconds=0.2,
        peak_memory_bytes=5_000_000,
        findings=(),
    )
    RunDir(tmp_path).write(LINT, lint)
    page = rendered(tmp_path)
    assert page.sections == ["lint"]
    assert "1 quantized site in 1 kB of GGUF, looked through in 0.2 s" in page.text
    assert "nothing is wrong with it" in page.text
    assert "GGUF, looked at alone, without a reference" in page.text


def test_an_invalid_record_is_named(tmp_path: Path) -> None:
    (tmp_path / LINT).write_text('{"candidate": 1}')
    with pytest.raises(QuantriageError, match=r"lint\.json: field 'candidate'"):
        rendered(tmp_path)


def test_a_summary_without_verdict_says_nothing_beside_a_diagnosis(tmp_path: Path) -> None:
    folder = write_diagnosis(write_run(tmp_path, Shape(blocks=2)), Shape(blocks=2))
    summary = json.loads((folder / SUMMARY).read_text())
    (folder / SUMMARY).write_text(json.dumps(summary | {"verdict": None}))
    page = rendered(folder)
    assert "verdict" not in page.sections
    assert "No verdict" not in page.text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    """Every string of every record but those with a fixed set of values, and units most of all."""
    folder = write_diagnosis(tmp_path, Shape(blocks=2))
    fixed = {"severity", "judgement", "part", "carrier", "verdict", "thread"}
    for name in RECORDS:
        content = _poisoned(json.loads((folder / name).read_text()), fixed)
        (folder / name).write_text(json.dumps(content))
    page = rendered(folder)
    assert page.sections == DIAGNOSIS
    assert len(page.scripts) == 3
    assert "img" not in [tag for tag, _ in page.tags]
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert "<script>alert(1)</script>" in page.text
    assert "{{7*7}}" in page.text
    assert "<" not in page.scripts[0]
    charts = json.dumps(page.charts)
    assert html.escape("<img src=x", quote=False) in charts
    assert "<img" not in charts
    assert "<script" not in charts


def _poisoned(content: object, fixed: set[str], key: str = "") -> object:
    if isinstance(content, dict):
        return {name: _poisoned(value, fixed, name) for name, value in content.items()}
    if isinstance(content, list):
        return [_poisoned(item, fixed, key) for item in content]
    if isinstance(content, str) and key not in fixed:
        return HOSTILE + content
    return content


@pytest.mark.parametrize(
    "thread",
    [
        "javascript:alert(1)",
        "http://github.com/a/b/issues/1",
        "HTTPS://github.com/a",
        "https://user@evil.example/",
        "https://evil.example\n/",
        "https://gith\u0443b.com/a",
        "data:text/html,<script>alert(1)</script>",
        " https://github.com",
        "https://localhost/x",
    ],
)
def test_only_https_threads_become_links(tmp_path: Path, thread: str) -> None:
    folder = write_diagnosis(tmp_path, Shape(blocks=2))
    lint = (folder / LINT).read_text()
    (folder / LINT).write_text(lint.replace(json.dumps(THREAD), json.dumps(thread)))
    page = rendered(folder)
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert all(link is not None and link.startswith("#") for link in links)
    assert " ".join(thread.split()).removeprefix("https://") in page.text


def test_an_https_thread_is_a_link_that_tells_nothing_of_the_reader(dense: Page) -> None:
    found = [a for tag, a in dense.tags if tag == "a" and not (a["href"] or "").startswith("#")]
    assert [(a["href"], a["rel"]) for a in found] == [(THREAD, "noopener noreferrer")]
    assert "javascript:alert(1)" in dense.text  # the other thread, as text


def _kl(unit: UnitAttribution) -> float:
    return unit.swap_kl if unit.swap_kl is not None else unit.predicted_kl or 0.0


def test_the_map_shows_swaps_where_measured_else_predictions(tmp_path: Path) -> None:
    shape = Shape(blocks=4)
    heat = rendered(write_diagnosis(tmp_path, shape)).charts["attribution-map"][0]["data"][0]  # type: ignore[index]
    units = {u.unit: u for u in attribution_of(shape).units}
    for row, block in enumerate(range(4)):
        for column, (module, _, _) in enumerate(shape.modules):
            unit = units[f"{shape.prefix}.{block}.{module}"]
            assert 10 ** heat["z"][row][column] == pytest.approx(_kl(unit), rel=1e-9)
    assert len(heat["z"][0]) == 7  # norms that are as in the reference take no column
    assert heat["text"][2][6] == "✕"
    assert heat["text"][1][0] == "▲"
    assert heat["text"][3][3] == ""


def test_without_recorded_sites_columns_do_not_depend_on_the_units_order(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write(ATTRIBUTION, attribution_of(Shape(blocks=2)))
    axis = rendered(tmp_path).charts["attribution-map"][0]["layout"]["xaxis"]  # type: ignore[index]
    assert axis["ticktext"] == ["down", "gate", "up", "k", "o", "q", "v"]


def test_a_norm_that_differs_has_its_column(tmp_path: Path) -> None:
    found = attribution_of(Shape(blocks=2))
    units = tuple(
        UnitAttribution(
            unit=u.unit,
            block=u.block,
            category=u.category,
            layout=u.layout,
            bits=u.bits,
            relative_error=0.2 if u.unit.endswith("1.input_layernorm") else u.relative_error,
            nearest_error=u.nearest_error,
            predicted_kl=0.5 if u.unit.endswith("1.input_layernorm") else u.predicted_kl,
        )
        for u in found.units
    )
    RunDir(tmp_path).write(ATTRIBUTION, _with_units(found, units))
    page = rendered(tmp_path)
    figure = page.charts["attribution-map"][0]
    assert figure["layout"]["xaxis"]["ticktext"][0] == "input<br>norm"  # type: ignore[index]
    assert 10 ** figure["data"][0]["z"][1][0] == pytest.approx(0.5)  # type: ignore[index]
    assert "it is model.layers.1.input_layernorm" in page.text


def _with_units(found: Attribution, units: tuple[UnitAttribution, ...]) -> Attribution:
    return Attribution(
        total_kl=found.total_kl,
        additivity=None,
        units=units,
        forwards=found.forwards,
        forwards_one_by_one=found.forwards_one_by_one,
        seconds=found.seconds,
        budget_seconds=found.budget_seconds,
        truncated=False,
    )


def test_attribution_says_what_its_records_say(dense: Page) -> None:
    found = attribution_of(Shape())
    values = sorted((_kl(u) for u in found.units), reverse=True)
    assert (
        f"1 unit of {len(values)} carries {100 * values[0] / sum(values):.0f}% of the units' KL" in dense.text
    )
    swapped = sum(u.swap_kl is not None for u in found.units)
    assert f"{swapped} of {len(values)} units swapped for real" in dense.text
    assert "61.5 forward passes in 3 min 32 s, where swapping one by one takes 243" in dense.text
    assert f"ended the swaps early: {len(values) - swapped} units rest on their prediction" in dense.text
    assert "sum to 0.940 times the total: the losses add up" in dense.text
    assert "1 damaged, 1 badly done, 1 hard, 240 fine" in dense.text
    assert (
        "1 unit of 33 differs, model.norm most, KL 0.00680; the other 32 are as in the reference"
        in dense.text
    )
    worst = next(u for u in found.units if u.unit == broken(Shape()))
    assert f"{worst.unit} {_kl(worst) / 0.0031:.1f} times" in dense.text
    assert worst.reason in dense.text


def test_an_attribution_that_had_time_does_not_speak_of_its_budget(tmp_path: Path) -> None:
    RunDir(tmp_path).write(ATTRIBUTION, attribution_of(Shape(blocks=2), truncated=False))
    assert "budget" not in rendered(tmp_path).text


def test_units_without_any_cost_are_counted(tmp_path: Path) -> None:
    found = attribution_of(Shape(blocks=2))
    path = RunDir(tmp_path).write(ATTRIBUTION, found)
    content = json.loads(path.read_text())
    for unit in content["units"][-2:]:
        unit["predicted_kl"] = unit["swap_kl"] = None
    path.write_text(json.dumps(content))
    text = rendered(tmp_path).text
    swapped = sum(u.swap_kl is not None for u in found.units[:-2])
    assert "2 units could be neither swapped nor predicted." in text
    assert f"{len(found.units) - 2 - swapped} units rest on their prediction" in text


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(0.5, "together they lose more"), (1.0, "the losses add up"), (1.9, "together they lose less")],
)
def test_additivity_is_explained(tmp_path: Path, ratio: float, words: str) -> None:
    run = RunDir(tmp_path)
    run.write(ATTRIBUTION, attribution_of(Shape(blocks=2)))
    path = run.file(ATTRIBUTION)
    path.write_text(re.sub(r'"additivity": [\d.]+', f'"additivity": {ratio}', path.read_text()))
    assert words in rendered(tmp_path).text


def test_units_that_lose_nothing_draw_no_logarithm_of_zero(tmp_path: Path) -> None:
    folder = write_diagnosis(tmp_path, Shape(blocks=2))
    keys = (
        "predicted_kl|swap_kl|optimal_kl|noise_ratio|relative_error|total_kl|additivity|nearest_error|"
        "value|value_all|value_culprits|value_without|low|high|noise_floor|kl"
    )
    for name in RECORDS:
        path = folder / name
        path.write_text(re.sub(rf'"({keys})": -?[\d.e-]+', r'"\1": 0.0', path.read_text()))
    page = rendered(folder)
    assert page.sections == DIAGNOSIS
    for views in page.charts.values():
        for figure in views:
            go.Figure(figure)


def test_the_candidates_causes_stand_costliest_first(dense: Page) -> None:
    found = candidate_of(Shape())
    assert found.sentence in dense.text
    assert any(a.get("class") == "verdict unproven" for _, a in dense.tags)
    ordered = [dense.text.index(c.sentence) for c in sorted(found.causes, key=lambda c: -(c.kl or 0.0))]
    assert ordered == sorted(ordered)
    share = (0.21 + 0.019) / attribution_of(Shape()).total_kl
    assert f"together they explain {100 * share:.0f}% of the KL" in dense.text
    for cause in found.causes:
        assert cause.action in dense.text


@pytest.mark.parametrize(
    ("verdict", "state"),
    [
        ("healthy", "proven"),
        ("badly quantized", "unproven"),
        ("at the limit of its bits", "open"),
        ("not comparable", "open"),
    ],
)
def test_only_a_candidate_at_fault_is_red(tmp_path: Path, verdict: str, state: str) -> None:
    RunDir(tmp_path).write(CANDIDATE, candidate_of(Shape(blocks=2)))
    path = tmp_path / CANDIDATE
    path.write_text(path.read_text().replace('"verdict": "damaged"', f'"verdict": "{verdict}"'))
    assert any(a.get("class") == f"verdict {state}" for _, a in rendered(tmp_path).tags)


def test_findings_of_one_kind_are_one_entry_worst_severity_first(dense: Page) -> None:
    found = lint_of(Shape())
    text = dense.text
    assert text.index("Errors") < text.index("Warnings") < text.index("Notes")
    assert "1 error, 9 warnings, 1 note." in text
    assert text.count("The tool chose group sizes one by one.") == 1
    assert "9 places" in text
    assert "6 more" in text
    for finding in found.findings:
        assert finding.evidence in text
        assert finding.site is None or finding.site in text


def test_settings_that_matter_stand_first_and_show_where_they_part(dense: Page) -> None:
    text = dense.text
    assert (
        "4 settings differ; 2 of them change what the model computes: rope_theta and chat_template." in text
    )
    keys = [text.index(f"{key} {file}") for key, file in (("rope_theta", "config"), ("top_p", "generation"))]
    assert keys == sorted(keys)
    assert "a helpful AI assistant named SmolLM" in text
    assert "Bob <|im_end|>" in text
    assert "messages[0]" not in text  # the equal beginning of the template is not shown


def test_the_bisect_is_told_and_drawn_step_by_step(dense: Page) -> None:
    found = bisection_of(Shape())
    assert f"{found.evaluations} evaluations narrowed 210 units to 2" in dense.text
    assert "2 units are bad together, and without them the candidate is good: 0.0208" in dense.text
    traces = dense.charts["bisect-path"][0]["data"]
    assert isinstance(traces, list)
    below = [trace for trace in traces if trace.get("yaxis") != "y2" and trace["name"]]
    drawn = {(x, y): trace["name"] for trace in below for x, y in zip(trace["x"], trace["y"], strict=True)}
    assert drawn == {(s.number, len(s.units)): "bad" if s.bad else "good" for s in found.steps}
    layout = dense.charts["bisect-path"][0]["layout"]
    assert layout["shapes"][0]["y0"] == 0.08  # type: ignore[index]


def test_a_search_by_command_has_no_figure_to_draw(tmp_path: Path) -> None:
    RunDir(tmp_path).write(BISECTION, bisection_of(Shape(blocks=3), command=True))
    page = rendered(tmp_path)
    assert "yaxis2" not in page.charts["bisect-path"][0]["layout"]  # type: ignore[operator]
    assert "not measured by a figure" in page.text


def test_culprits_that_do_not_explain_everything_are_said_so(tmp_path: Path) -> None:
    RunDir(tmp_path).write(BISECTION, bisection_of(Shape(blocks=3)))
    path = tmp_path / BISECTION
    path.write_text(path.read_text().replace('"value_without": 0.0208', '"value_without": 0.2'))
    assert "still bad, 0.200 where bad begins at 0.0800" in rendered(tmp_path).text


def test_the_split_shows_legs_guards_and_what_to_conclude(dense: Page) -> None:
    found = split_of()
    assert found.sentence in dense.text
    assert "1 of 4 conditions does not hold (chat-template)" in dense.text
    assert "lose KL 0.331, 301 times the noise floor" in dense.text
    assert "transformers' quantized path: 0.334, the same within the intervals;" in dense.text
    assert "prompts from support-tickets.jsonl: 0.482, 0.151 more (46%);" in dense.text
    assert "vLLM by prompt log-probabilities gives no KL" in dense.text
    marks = sum(len(trace["x"]) for trace in dense.charts["split-legs"][0]["data"])  # type: ignore[union-attr, attr-defined]
    assert marks == sum(leg.kl is not None for leg in found.legs)
    signs = [a["aria-label"] for _, a in dense.tags if a.get("class") == "sign"]
    assert signs == ["holds" if guard.holds else "does not hold" for guard in found.guards]


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (Interval(value=0.092, low=0.08, high=0.1), "72% less for 168 kB (0.15%) more"),
        (Interval(value=0.3, low=0.25, high=0.35), "the intervals overlap, so a gain is not shown"),
        (Interval(value=0.5, low=0.45, high=0.55), "the repair made it worse"),
    ],
)
def test_a_gain_is_claimed_only_where_intervals_part(tmp_path: Path, after: Interval, words: str) -> None:
    RunDir(tmp_path).write(REPAIR, repair_of(Shape(blocks=3)))
    content = json.loads((tmp_path / REPAIR).read_text())
    content["kl_after"] = {"value": after.value, "low": after.low, "high": after.high}
    (tmp_path / REPAIR).write_text(json.dumps(content))
    page = rendered(tmp_path)
    assert words in page.text
    assert "1 rounded again in the same scheme and 1 moved to another scheme" in page.text
    assert "w4a-g64 → w8a-g64" in page.text


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.02, -0.004, "window by window the change is −0.0120 (−0.0200 to −0.00400), so the gain is no"),
        (-0.03, 0.006, "(−0.0300 to +0.00600), so a gain is not shown"),
        (0.004, 0.02, "the repair made it worse; window by window the change is"),
    ],
)
def test_the_paired_difference_decides_where_intervals_overlap(
    tmp_path: Path, low: float, high: float, words: str
) -> None:
    RunDir(tmp_path).write(REPAIR, repair_of(Shape(blocks=3)))
    content = json.loads((tmp_path / REPAIR).read_text())
    content["kl_before"] = {"value": 0.1, "low": 0.05, "high": 0.15}
    content["kl_after"] = {"value": 0.1 + (low + high) / 2, "low": 0.04, "high": 0.16}
    content["difference"] = {"value": (low + high) / 2, "low": low, "high": high}
    (tmp_path / REPAIR).write_text(json.dumps(content))
    assert words in rendered(tmp_path).text


def test_experts_share_a_cell_that_shows_the_worst(tmp_path: Path) -> None:
    shape = Shape(blocks=2, experts=8)
    heat = rendered(write_diagnosis(tmp_path, shape)).charts["attribution-map"][0]["data"][0]  # type: ignore[index]
    experts = [u for u in attribution_of(shape).units if u.block == 0 and u.unit.endswith("down_proj")]
    assert len(experts) == 8
    assert 10 ** heat["z"][0][6] == pytest.approx(max(map(_kl, experts)), rel=1e-9)
    assert "8 experts, block 0" in heat["customdata"][0][6]
