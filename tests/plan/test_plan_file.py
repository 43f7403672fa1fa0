import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_units import site, tiny_kl, tiny_sites

from quantriage.errors import BudgetError, QuantriageError, UsageError
from quantriage.numerics.schemes import Scheme
from quantriage.plan.baselines import uniform_mixes
from quantriage.plan.mixes import plan_of
from quantriage.plan.plan_check import diff, validate
from quantriage.plan.plan_file import from_yaml, to_yaml
from quantriage.plan.sizes import site_bytes
from quantriage.plan.targets import menu
from quantriage.plan.units import form_units

SITES = tiny_sites(2)
KL = tiny_kl(SITES, menu("transformers", (64, 64))) | tiny_kl(SITES, menu("transformers", (64, 96)))
UNITS = form_units(SITES, lambda shape: menu("transformers", shape), KL)
MIXES = uniform_mixes(UNITS, "transformers", 10**9)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(MIXES), st.sampled_from(["gptq", "rtn"]))
def test_round_trip(mix, method):
    plan = plan_of(mix, SITES, "transformers", 'budget 4.5 bpw: "x" # y', method)
    read = from_yaml(to_yaml(plan), SITES, kl=KL)
    same = msgspec.structs.replace(read, predicted_kl=plan.predicted_kl)
    assert same == plan
    assert read.predicted_kl == pytest.approx(plan.predicted_kl)
    assert from_yaml(to_yaml(plan), SITES).predicted_kl is None


def test_patterns_comments_and_resolution():
    text = """
# my plan
target: vllm
bytes: 1   # a lie
sites:
  "*": w4a-g64
  "*.down": w8s-channel rtn
  layers.1.down: none
"""
    plan = from_yaml(text, SITES)
    said = {a.site: (a.scheme, a.method) for a in plan.assignments}
    assert said["layers.0.q"] == ("w4a-g64", "gptq")
    assert said["layers.0.down"] == ("w8s-channel", "rtn")
    assert said["layers.1.down"] == ("none", "gptq")
    want = sum(
        site_bytes(None if said[s.name][0] == "none" else Scheme.parse(said[s.name][0]), s.shape)
        for s in SITES
    )
    assert plan.bytes == want
    assert plan.bits_per_weight == pytest.approx(8 * want / sum(s.shape[0] * s.shape[1] for s in SITES))
    resolved = from_yaml('target: vllm\nsites: {"*": w4a-g64}', SITES)
    assert {f.site for f in resolved.findings} == {"layers.0.down", "layers.1.down"}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[1, 2]", "no mapping"),
        ("target: vllm", "no lines under"),
        ("target: [", "not valid YAML"),
        ("target: vllm\nsites:\n  *.down: none", "quotes"),
        ('sites: {"*": none}', "names no target"),
        ('target: vlm\nsites: {"*": none}', "expected one of"),
        ('target: vllm\ntarged: x\nsites: {"*": none}', "line 2.*did you mean target"),
        ('target: vllm\nsites:\n  "*": none\n  layers.0.dwn: none', "line 4.*layers.0.down"),
        ('target: vllm\nsites:\n  "*.gate": none', "matches no site"),
        ('target: vllm\nsites:\n  "*": none\n  "*": w4a-g32', "line 4.*already in line 3"),
        ('target: vllm\nsites: {"*.q": none}', "no line for layers.0.k.* and 1 more"),
        ('target: vllm\nsites: {"*": none, layers.0.q: w4a-g64}', "share one scheme"),
        ('target: vllm\nsites: {"*": w3a-g64}', "cannot hold.*w4a-g32"),
        ('target: vllm\nsites: {"*": w4x-g64}', "expected for example"),
        ('target: vllm\nsites: {"*": w4a-g64 gptq fast}', "scheme method"),
        ('target: vllm\nsites: {"*": [w4a-g64]}', "scheme method"),
        ('target: vllm\nsites: {"*": }', "expected for example|scheme method"),
        ("", "no mapping"),
    ],
)
def test_wrong_files_are_refused_in_words(text, match):
    with pytest.raises(QuantriageError, match=re.compile(match, re.DOTALL)):
        from_yaml(text, SITES)


def test_a_width_that_nothing_divides_is_refused():
    with pytest.raises(BudgetError, match="per channel"):
        from_yaml('target: vllm\nsites: {"*": w4a-g64}', (site("a", (8, 40)),))


def test_diff_says_what_changed():
    a = from_yaml('target: vllm\nsites: {"*": w4a-g32}', SITES)
    b = from_yaml('target: vllm\nsites: {"*": w4a-g32, layers.1.o: w8s-g32, layers.0.o: none}', SITES)
    words = diff(a, b)
    assert words[0] == "layers.0.o: w4a-g32 by gptq becomes full precision"
    assert words[1] == "layers.1.o: w4a-g32 by gptq becomes w8s-g32 by gptq"
    assert words[2].startswith(f"size: {a.bytes:,} becomes {b.bytes:,} bytes")
    assert len(words) == 3
    assert diff(a, a) == ()


def test_validate_names_every_fault():
    plan = from_yaml('target: vllm\nsites: {"*": w4a-g32}', SITES)
    lines = list(plan.assignments)
    broken = msgspec.structs.replace(
        plan,
        assignments=(msgspec.structs.replace(lines[0], scheme="w8s-g32"), lines[1], lines[1], *lines[3:]),
    )
    with pytest.raises(
        UsageError, match=r"layers\.0\.k is named 2 times; layers\.0\.o has no line.*share one"
    ):
        validate(broken, SITES)
    validate(plan, SITES)
