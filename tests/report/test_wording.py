"""Figures as words: given values against what a person would write."""

import pytest

from quantriage.records.types import Interval, SiteInfo
from quantriage.report.sections.bisection import threshold_of
from quantriage.report.sections.differences import Value, parted
from quantriage.report.site_names import cells, short_columns, short_sites
from quantriage.report.unit_places import module_of
from quantriage.report.wording import (
    chart_text,
    clip,
    duration,
    engine_failure,
    listed,
    median,
    number,
    percent,
    plural,
    signed,
    size,
    span,
    tail,
    tooltip,
    visible,
)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0613, "0.0613"),
        (24.71, "24.7"),
        (1234.5, "1,234"),
        (0.00011, "0.000110"),
        (3.14e-05, "3.14e-05"),
        (0, "0"),
        (-0.5, "-0.500"),
        (9.999e7, "1.00e+08"),
    ],
)
def test_numbers_have_three_digits(value: float, words: str) -> None:
    assert number(value) == words


def test_other_quantities() -> None:
    assert [percent(x) for x in (0.412, 0.041, 0.01, 0.0041, 0.9999, 1, 0)] == [
        "41%",
        "4.1%",
        "1%",
        "0.41%",
        "99.9%",
        "100%",
        "0%",
    ]
    assert [signed(x) for x in (-0.022, 0.0, 4.68)] == ["−0.0220", "0", "+4.68"]
    assert span(Interval(value=2, low=1, high=3)) == "1.00 to 3.00"
    assert [size(x) for x in (12, 82_300_000, 1_500_000_000, 999_600)] == [
        "12 B",
        "82.3 MB",
        "1.5 GB",
        "1 MB",
    ]
    assert [duration(x) for x in (3.42, 310, 59.96, 7500)] == ["3.4 s", "5 min 10 s", "60.0 s", "2 h 05 min"]
    assert [plural(1, "site"), plural(2100, "site")] == ["1 site", "2,100 sites"]
    assert [median([3, 1, 2]), median([4, 1, 2, 3])] == [2, 2.5]


def test_tokens_show_their_white_space() -> None:
    assert [visible(t) for t in (" the", "\n", "a\tb", "", "  ")] == ["␣the", "⏎", "a⇥b", "∅", "␣␣"]
    assert tail("one two three " * 30).startswith("… ")
    assert len(tail("x" * 500)) <= 152


def test_chart_text_is_escaped_and_tooltips_are_wrapped() -> None:
    assert chart_text("<b>&") == "&lt;b&gt;&amp;"
    lines = tooltip(["<i>" + "y" * 100, "end"]).split("<br>")
    assert lines[0].startswith("&lt;i&gt;yyy")
    assert lines[-1] == "end"
    assert len(lines) == 4


def _site(block: int, module: str) -> SiteInfo:
    return SiteInfo(name=f"m.{block}.{module}", block=block, module=module, category="mlp", shape=(2, 2))


def test_short_names_drop_what_all_share_and_stay_unique() -> None:
    assert short_columns(["self_attn.q_proj", "mlp.down_proj"]) == {
        "self_attn.q_proj": "q",
        "mlp.down_proj": "down",
    }
    clash = ["attn.c_proj", "mlp.c_proj"]
    assert short_columns(clash) == {name: name for name in clash}
    assert short_columns(["mlp.c_fc"]) == {"mlp.c_fc": "c_fc"}


def test_experts_share_a_cell_and_keep_their_number() -> None:
    sites = [_site(3, f"mlp.experts.{e}.down_proj") for e in range(4)] + [_site(3, "self_attn.q_proj")]
    grouped = cells(sites)
    assert [(c.block, c.column, len(c.sites)) for c in grouped] == [
        (3, "mlp.experts.*.down_proj", 4),
        (3, "self_attn.q_proj", 1),
    ]
    assert short_sites(sites)["m.3.mlp.experts.2.down_proj"] == "3 · exp. down *2"


def test_norms_are_three_short_lines_beside_sites_without_their_usual_ending() -> None:
    names = ["self_attn.q_proj", "mlp.up_proj", "mlp.down_proj", "post_attention_layernorm", "norm1"]
    assert list(short_columns(names).values()) == ["q", "up", "down", "post attn norm", "norm1"]


def test_lists_and_long_texts_are_cut() -> None:
    assert [
        listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d", "e"])
    ] == [
        "",
        "a",
        "a and b",
        "a, b and c",
        "a, b, c and 2 more",
    ]
    assert clip("abcdef", 6) == "abcdef"
    assert clip("abcdefg", 6) == "abcde…"


@pytest.mark.parametrize(
    ("name", "block", "module"),
    [
        ("model.layers.3.mlp.experts.3.up_proj", 3, "mlp.experts.3.up_proj"),
        ("blk.1.attn_q", 1, "attn_q"),
        ("strange", 4, "strange"),
        ("model.layers.3.", 3, "model.layers.3."),
    ],
)
def test_a_units_module_follows_its_blocks_number(name: str, block: int, module: str) -> None:
    assert module_of(name, block) == module


@pytest.mark.parametrize(
    ("criterion", "threshold"),
    [
        ("KL > 0.05", 0.05),
        ("perplexity > 25", 25.0),
        ("KL >= 1e-3", 1e-3),
        ("command: test 1 > 0.5", None),
        ("worse", None),
    ],
)
def test_a_threshold_is_read_from_the_criterion(criterion: str, threshold: float | None) -> None:
    assert threshold_of(criterion) == threshold


def test_long_values_are_shown_where_they_part() -> None:
    assert parted("1", "22") == (Value("", "1", ""), Value("", "22", ""))
    first, second = parted("x" * 60 + "old" + "y" * 60, "x" * 60 + "new" + "y" * 60)
    assert first == Value("…" + "x" * 24, "old", "y" * 23 + "…")
    assert second == Value("…" + "x" * 24, "new", "y" * 23 + "…")
    whole, doubled = parted("ab" * 30, "ab" * 31)
    assert whole.changed == ""
    assert doubled.changed == "ab"


def test_an_engines_failure_is_the_error_it_names_first() -> None:
    ours = "best, vllm: ended with status 1 and no answer."
    lines = [
        "-packages/vllm/model_executor/models/llama.py, line 391, in <lambda>",
        "[rank0]:     raise ValueError(",
        "[rank0]: ValueError: Failed to find a kernel. Reasons: ",
        "[rank0]:  A kernel cannot implement due to: Unsupported quant type uint8b128",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    found = engine_failure(f"{ours} Its last output: " + "\n".join(lines * 9))
    reason = (
        "ValueError: Failed to find a kernel. Reasons: A kernel cannot implement due to: Unsupported quant"
    )
    assert found.startswith(f"{ours} {reason} type uint8b128 RuntimeError")
    assert len(found) == 300
    assert engine_failure(f"{ours} Its last output: loading\nKilled") == f"{ours} loading Killed"
    assert engine_failure("vLLM reads no GGUF") == "vLLM reads no GGUF"
