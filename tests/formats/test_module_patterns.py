"""Rules by pattern: matched like upstream, refused where a hostile one would match for years."""

import time

import pytest

from quantriage.errors import CheckpointError
from quantriage.formats.module_patterns import compile_pattern, read_patterns

NAME = "model.layers.10.mlp.experts.127.down_proj"


@pytest.mark.parametrize(
    "text",
    [
        r".*\.q_proj",
        r"model\.layers\.(0|1|2)\..*",
        "model.layers.[0-9]+.mlp",
        r"(?!lm_head).*",
        r"(?:.*\.)?down_proj",
        r"[)*]+x",
        r"\)*x",
        "[^])*]x",
    ],
)
def test_usual_patterns_are_compiled(text):
    assert compile_pattern(text, "here").pattern == text


@pytest.mark.parametrize(
    "text",
    [
        "(a+)+$",
        "(a|a)*$",
        r"(.*)*\.x",
        "(?:a{1,9}){1,9}",
        r"(a*)\1",
        "(?P<n>a*)(?P=n)",
        ".*.*.*.*.*.*x",
        "(a|a)" * 40 + "x",
        "a?" * 40 + "x",
        "(?x)#[\n(a+)+$ #]",
        "(?#[)(a+)+$(?#])",
        r"[\]](a+)+$[\]]",
        "[]](a+)+$[^]]",
        "((",
        "a" * 30_000,
        "a{1}{2}",
        "(" * 500,
    ],
)
def test_patterns_that_could_take_for_ever_are_refused(text):
    with pytest.raises(CheckpointError, match="here: pattern"):
        compile_pattern(text, "here")


@pytest.mark.parametrize("text", [".*.*.*.*x", "(.*|a*)?(.*|a)?x", "(a|a)?" * 11 + "x"])
def test_the_slowest_that_is_let_through_ends(text):
    started = time.process_time()
    for name in (NAME, "a" * 60):
        compile_pattern(text, "here").match(name)
    assert time.process_time() - started < 5


def test_first_match_from_the_start_wins():
    texts = [r"^a\.b$", "a", r"^a\.c$", "b"]
    patterns = read_patterns(texts, "here")
    assert [patterns.first(name) for name in ("a.b", "a.c", "ax", "b", "ab.b", "x")] == [0, 1, 1, 3, 1, None]
    assert read_patterns([r"^a\.b$", r"^a\.b$"], "here").first("a.b") == 0
    assert read_patterns(["b"], "here", searched=True).first("ab") == 0
    with pytest.raises(CheckpointError, match="a name of 300 characters"):
        patterns.first("a" * 300)


def test_thousands_of_whole_names_are_looked_up():
    texts = [rf"^model\.experts\.{i}$" for i in range(50_000)]
    patterns = read_patterns(texts, "here")
    assert not patterns.expressions
    assert patterns.first("model.experts.49999") == 49_999
    with pytest.raises(CheckpointError, match="more than 1000 patterns"):
        read_patterns([f"a{i}" for i in range(1001)], "here")
