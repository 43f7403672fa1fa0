"""The sweep section: complete, escaped, and saying what the record says."""

import re
from pathlib import Path

import plotly.graph_objects as go
import pytest
from parsed_page import rendered

from quantriage.diagnose.sweep_advice import size_factor
from quantriage.records.run_dir import SWEEP, RunDir
from quantriage.records.sweep import Confirmation, ErrorParts, Sweep, SweepOptimum, SweepRun, SweepVariant
from quantriage.records.types import Finding, Interval

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}<!--"


def interval(value: float, width: float = 0.1) -> Interval:
    return Interval(value=value, low=value * (1 - width), high=value * (1 + width))


def variant(
    label: str, kl: float, bits: float, value: float | None = None, *, base: bool = False
) -> SweepVariant:
    clipping = 0.0 if value is None else 0.02 * (1 - value)
    return SweepVariant(
        label=label,
        value=value,
        scheme="w4a-g64",
        method="rtn",
        bits_per_weight=bits,
        bytes=57_000_000,
        rmse=0.0021,
        relative_error=0.11,
        output_error=0.02,
        joint_error=None,
        parts=ErrorParts(clipped=1200, weights=100_000, clipping=clipping, rounding=0.01),
        rounding_cpu_seconds=1.5,
        statistics_cpu_seconds=2.0,
        calibration_tokens=0,
        kl=interval(kl),
        perplexity=interval(25.0),
        top1_agreement=0.8,
        kl_at_equal_size=kl * size_factor(bits, 4.0),
        against_baseline=None if base else Interval(value=-0.1, low=-0.12, high=-0.08),
        kl_sequences=(kl, kl),
        loads=("vllm", "transformers"),
        findings=(Finding(severity="info", code="scheme-resolved", text="180 of 210 layers: uses 64"),),
    )


def sweep_of(choice: str, variants: tuple[SweepVariant, ...], baseline: str, recommended: str) -> Sweep:
    optima = tuple(
        SweepOptimum(
            site=f"model.layers.{i}.mlp.down_proj",
            block=i,
            category="mlp",
            best_plain=0.9,
            best_output=0.85 if i else 0.9,
            plain_gain=0.8,
            output_gain=0.7,
        )
        for i in range(6)
    )
    against = next(v.label for v in variants if v.label != recommended)
    return Sweep(
        choice=choice,
        question="how many weights should share a scale?",
        model="model",
        scheme="w4a-g64",
        method="rtn",
        baseline=baseline,
        reference_perplexity=interval(20.0),
        reference_perplexity_held_out=interval(21.0),
        variants=variants,
        optima=optima if choice == "clipping" else (),
        recommended=recommended,
        reason=f"{recommended} has KL 0.1.",
        confirmation=Confirmation(
            recommended=recommended,
            against=against,
            recommended_kl=interval(0.11),
            against_kl=interval(0.31),
            recommended_perplexity=interval(22.0),
            against_perplexity=interval(29.0),
            difference=Interval(value=-0.2, low=-0.25, high=-0.15),
            difference_at_equal_size=Interval(value=-0.1, low=-0.15, high=-0.05),
            verdict="wins",
        ),
        notes=("256: 180 of 210 layers: uses 64",),
        seconds=63.0,
        peak_memory_bytes=900_000_000,
    )


GROUPS = (
    variant("32", 0.1, 4.625),
    variant("64", 0.15, 4.31),
    variant("channel", 0.9, 4.0, base=True),
)
RATIOS = (
    variant("1", 0.4, 4.3, 1.0, base=True),
    variant("0.9", 0.2, 4.3, 0.9),
    variant("0.8", 0.3, 4.3, 0.8),
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    sweeps = sweep_of("group-size", GROUPS, "channel", "32"), sweep_of("clipping", RATIOS, "1", "0.9")
    RunDir(tmp_path).write(SWEEP, SweepRun(sweeps=sweeps))
    return tmp_path


def test_both_choices_have_tables_pictures_and_captions(run: Path) -> None:
    page = rendered(run)
    assert page.sections == ["sweep"]
    assert {name: len(views) for name, views in page.charts.items()} == {
        "sweep-group-size": 2,
        "sweep-clipping": 3,
    }
    for views in page.charts.values():
        for figure in views:
            go.Figure(figure)
            assert figure["data"]
    text = (run / "report.html").read_text(encoding="utf-8")
    captions = re.findall(r"<figcaption[^>]*>(.*?)</figcaption>", text)
    assert len(captions) == 5
    assert all(len(caption.split()) > 6 and caption.endswith(".") for caption in captions)
    assert "Use 32: held-out text agrees" in page.text
    assert "window by window the difference is −0.200 (−0.250 to −0.150), and −0.100" in page.text
    assert "180 of 210 layers" in page.text
    assert "vllm, transformers" in page.text
    assert "model.layers.5.mlp.down_proj" in page.text


def test_captions_say_what_lies_below_the_line_and_where_the_error_is_least(run: Path) -> None:
    page = rendered(run)
    # 0.15 at 4.31 bits stands for 0.20 at 4, 0.1 at 4.625 for 0.19: both below 0.9
    assert "32, 64 lie below it and are worth the bits" in page.text
    assert "1.2% of the weights are clipped" in page.text
    assert "83% of the layers are best at 0.850, others from 0.850 to 0.900" in page.text


def test_the_line_of_equal_worth_goes_through_the_baseline(run: Path) -> None:
    line = rendered(run).charts["sweep-group-size"][1]["data"][0]  # type: ignore[index]
    worth = dict(zip(line["x"], line["y"], strict=True))
    assert worth[4.0] == pytest.approx(0.9)
    assert worth[4.625] == pytest.approx(0.9 * (1 - 0.75 * 0.625))


def test_keeping_the_baseline_is_said_so(tmp_path: Path) -> None:
    RunDir(tmp_path).write(SWEEP, SweepRun(sweeps=(sweep_of("group-size", GROUPS, "channel", "channel"),)))
    assert "Keep channel: held-out text agrees" in rendered(tmp_path).text


def test_names_are_escaped(tmp_path: Path) -> None:
    rows = (variant(HOSTILE, 0.1, 4.6), *GROUPS[1:])
    RunDir(tmp_path).write(SWEEP, SweepRun(sweeps=(sweep_of("group-size", rows, "channel", HOSTILE),)))
    page = rendered(tmp_path)
    assert len(page.scripts) == 3
    assert not [attributes for tag, attributes in page.tags if tag == "img"]
