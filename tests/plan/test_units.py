import pytest
from tiny_units import site, tiny_kl, tiny_sites

from quantriage.errors import BudgetError, UsageError
from quantriage.formats.compressed_tensors import stored_bytes
from quantriage.numerics.schemes import Scheme
from quantriage.plan.group_size import resolve
from quantriage.plan.targets import TARGETS, menu
from quantriage.plan.units import form_units, fused_groups


@pytest.mark.parametrize("name", TARGETS)
def test_menu_entries_parse_divide_and_are_distinct(name):
    schemes = menu(name, (64, 576), "bfloat16")
    assert len(set(schemes)) == len(schemes) > 0
    own_scales = TARGETS[name].stored == "gguf"  # a type's scales are its own
    assert {s.scale_dtype for s in schemes} == {"float16" if own_scales else "bfloat16"}
    assert not any("g128" in str(s) for s in schemes)
    assert len(menu(name, (64, 1024))) == len(TARGETS[name].schemes)


def test_menus_hold_what_the_loaders_run():
    assert "w8a-g64" not in TARGETS["vllm"].schemes
    assert {s[1] for s in TARGETS["vllm"].schemes} == {"4", "8"}
    assert {s[1] for s in TARGETS["transformers"].schemes} == set("2345678")
    assert [str(s) for s in menu("llama.cpp", (5, 576))] == [
        "Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0"
    ]  # fmt: skip
    assert menu("llama.cpp", (64, 48)) == ()
    assert menu("vllm-cpu", (40, 64)) == () == menu("vllm-cpu", (64, 48))
    with pytest.raises(UsageError, match="vllm-cpu"):
        menu("gguf", (64, 64))


def test_group_size_is_resolved_downwards_and_said():
    used, finding = resolve(Scheme.parse("w4a-g128"), 576, (32, 64, 128))
    assert str(used) == "w4a-g64"
    assert finding is not None
    assert finding.code == "group-size-resolved"
    assert all(word in finding.text for word in ("576", "128", "64"))
    assert resolve(Scheme.parse("w4a-g32"), 576, (32,)) == (Scheme.parse("w4a-g32"), None)
    assert resolve(Scheme.parse("w4a-channel"), 577, (32,))[1] is None
    with pytest.raises(BudgetError, match="per channel"):
        resolve(Scheme.parse("w4a-g64"), 577, (32, 64))
    with pytest.raises(BudgetError, match="group size 64, 192 or per channel"):
        resolve(Scheme.parse("w4a-g50"), 576, (64, 192))


def test_units_are_components_in_both_directions():
    sites = (
        site("a", (8, 8)),
        site("b", (8, 8), fused=("c",)),
        site("c", (8, 8), fused=("a",)),
        site("d", (8, 8)),
    )
    assert [[s.name for s in g] for g in fused_groups(sites)] == [["a", "b", "c"], ["d"]]
    with pytest.raises(UsageError, match="not among"):
        fused_groups((site("a", (8, 8), fused=("z",)),))


def test_options_need_every_member_and_add_up():
    sites = tiny_sites(1)
    schemes = menu("transformers", (64, 64))
    kl = tiny_kl(sites, schemes)
    del kl["layers.0.k", Scheme.parse("w3s-g32")]
    units = form_units(sites, lambda shape: menu("transformers", shape), kl)
    assert [len(u.sites) for u in units] == [2, 1, 1]
    by = {str(o.scheme): o for o in units[0].options}
    assert "w3s-g32" not in by
    four = by["w4a-g32"]
    assert four.bytes == sum(stored_bytes(Scheme.parse("w4a-g32"), s.shape) for s in units[0].sites)
    assert four.kl == pytest.approx(
        kl["layers.0.q", Scheme.parse("w4a-g32")] + kl["layers.0.k", Scheme.parse("w4a-g32")]
    )
    assert by["None"].bytes == 2 * 96 * 64
    assert by["None"].kl == 0
    assert not any("g64" in str(o.scheme) for o in units[2].options)  # width 96
    kl["layers.0.o", Scheme.parse("w4a-g32")] = float("nan")
    with pytest.raises(BudgetError, match="finite"):
        form_units(sites, lambda shape: menu("transformers", shape), kl)


def test_frontier_keeps_exactly_the_undominated():
    (unit,) = form_units(
        (site("a", (64, 64)),),
        lambda shape: menu("transformers", shape),
        tiny_kl((site("a", (64, 64)),), menu("transformers", (64, 64))),
    )
    slow = [
        o
        for o in unit.options
        if not any(
            (p.bytes <= o.bytes and p.kl < o.kl) or (p.bytes < o.bytes and p.kl <= o.kl) for p in unit.options
        )
    ]
    assert {(o.bytes, o.kl) for o in slow} == {(o.bytes, o.kl) for o in unit.frontier}
