"""Oracles: byte counts of the format, summed site by site, and enumeration of all pairs of schemes."""

import pytest
from tiny_units import site, tiny_kl, tiny_sites

from quantriage.numerics.schemes import Scheme
from quantriage.plan.allocate import allocate
from quantriage.plan.baselines import first_and_last, resolve_uniform, uniform_mixes
from quantriage.plan.mixes import named, plan_of
from quantriage.plan.sizes import site_bytes
from quantriage.plan.swaps import neighbours
from quantriage.plan.targets import TARGETS, menu
from quantriage.plan.units import form_units

SITES = tiny_sites(4)
BY_NAME = {s.name: s for s in SITES}


def units_for(target, known=True):
    kl = {}
    for shape in {s.shape for s in SITES}:
        kl |= tiny_kl(SITES, menu(target, shape)) if known else {}
    return form_units(SITES, lambda shape: menu(target, shape), kl)


def size_of(schemes):
    return sum(site_bytes(scheme, BY_NAME[name].shape) for name, scheme in schemes.items())


@pytest.mark.parametrize("target", TARGETS)
def test_every_uniform_scheme_within_budget_is_there_once(target):
    units = units_for(target)
    everything = uniform_mixes(units, target, 10**9)
    assert len({tuple(sorted((k, str(v)) for k, v in m.schemes.items())) for m in everything}) == len(
        everything
    )
    expected = {"Q4_0", "IQ4_NL", "Q8_0"} if target == "llama.cpp" else {"w4a-g32", "w4a-g64", "w4s-channel"}
    assert expected <= {m.label for m in everything}
    assert all(m.bytes == size_of(m.schemes) and set(m.schemes) == set(BY_NAME) for m in everything)
    budget = sorted(m.bytes for m in everything)[len(everything) // 2]
    within = uniform_mixes(units, target, budget)
    assert [m.label for m in within] == [m.label for m in everything if m.bytes <= budget]


def test_uniform_resolves_groups_and_says_so():
    schemes, findings = resolve_uniform(Scheme.parse("w4a-g64"), SITES, "vllm")
    assert str(schemes["layers.0.q"]) == "w4a-g64"
    assert str(schemes["layers.0.down"]) == "w4a-g32"
    assert {f.site for f in findings} == {s.name for s in SITES if s.shape[1] == 96}
    odd = (site("a", (64, 40), fused=("b",)), site("b", (64, 64)))
    schemes, findings = resolve_uniform(Scheme.parse("w4a-g64"), odd, "vllm")
    assert schemes == {"a": None, "b": None}
    assert {f.code for f in findings} == {"site-left-dense"}


def test_uniform_exists_without_predictions():
    mixes = uniform_mixes(units_for("vllm", known=False), "vllm", 10**9)
    assert mixes
    assert all(m.predicted_kl is None for m in mixes)


@pytest.mark.parametrize("target", ["vllm", "transformers"])
def test_first_and_last_is_the_best_pair_that_fits(target):
    units = units_for(target)
    whole = sum(u.bytes_as(None) for u in units)
    full = {m.label: m for m in uniform_mixes(units, target, 10**9)}
    kl_of = [{o.scheme: o.kl for o in u.options} for u in units]
    for share in (0.2, 0.3, 0.45, 0.6):
        budget = int(whole * share)
        costs = []
        for rest in full.values():
            for end in [*full.values(), None]:
                if end is not None and int(end.label[1]) <= int(rest.label[1]):
                    continue
                chosen = {
                    n: (end.schemes[n] if end else None) if s.block in (0, 3) else rest.schemes[n]
                    for n, s in BY_NAME.items()
                }
                if size_of(chosen) <= budget:
                    costs.append(sum(k[chosen[u.sites[0].name]] for u, k in zip(units, kl_of, strict=True)))
        found = first_and_last(units, target, budget)
        if not costs:
            assert found is None
        else:
            assert found is not None
            assert found.predicted_kl == pytest.approx(min(costs))
            assert found.bytes == size_of(found.schemes) <= budget
    assert first_and_last(units, target, 100) is None


def test_neighbours_fit_are_distinct_and_ordered():
    units = units_for("transformers")
    budget = int(sum(u.bytes_as(None) for u in units) * 4.5 / 16)
    mix = allocate(units, budget, top=1)[0]
    found = list(neighbours(units, mix, budget, 40))
    assert len(found) == 40
    assert len({m.choices for m in found} | {mix.choices}) == 41
    # sums of the same terms in another order differ in the last bits
    assert [m.kl for m in found] == pytest.approx(sorted(m.kl for m in found), rel=1e-12)
    for m in found:
        assert m.bytes <= budget
        assert m.kl >= mix.kl * (1 - 1e-9)  # the start is optimal
        assert any(a.kl < b.kl for a, b in zip(m.choices, mix.choices, strict=True))
    assert list(neighbours(units, mix, budget, 3)) == found[:3]


def test_neighbours_use_slack_and_improve_a_bad_start():
    units = units_for("vllm")
    smallest = allocate(units, sum(u.frontier[0].bytes for u in units), top=1)[0]
    best = next(neighbours(units, smallest, 10**9, 1))
    singles = [smallest.kl - u.frontier[0].kl + u.frontier[-1].kl for u in units]
    assert best.kl == pytest.approx(min(singles))
    full = allocate(units, sum(u.frontier[-1].bytes for u in units), top=1)[0]
    assert list(neighbours(units, full, 10**9, 5)) == []


def test_an_allocated_mix_becomes_a_plan():
    units = units_for("vllm")
    mix = named(units, allocate(units, int(sum(u.bytes_as(None) for u in units) * 0.4), 1)[0], "mix 1")
    plan = plan_of(mix, SITES, "vllm", "budget 6.4 bpw")
    assert [a.site for a in plan.assignments] == [s.name for s in SITES]
    assert plan.bytes == size_of(mix.schemes)
    assert plan.bits_per_weight == pytest.approx(8 * plan.bytes / sum(s.shape[0] * s.shape[1] for s in SITES))
