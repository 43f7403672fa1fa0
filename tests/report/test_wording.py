"""Figures as words: given values against what a person would write."""

import pytest

from quantriage.records.types import Interval, SiteInfo
from quantriage.report.site_names import cells, short_columns, short_sites
from quantriage.report.wording import (
    chart_text,
    duration,
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
