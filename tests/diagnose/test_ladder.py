"""Rungs of the ladder against scipy, and the words of the advice."""

import pytest
from scipy.stats import spearmanr

from quantriage.diagnose.advice import diagnose_sites
from quantriage.diagnose.fisher import FisherScores
from quantriage.diagnose.ladder import rung_correlations, sensitivity_records
from quantriage.model.site import ModelMap, Site
from quantriage.numerics.schemes import Scheme
from quantriage.numerics.weight_error import WeightError

BASE, FINER, HIGHER = (Scheme.parse(text) for text in ("w4a-g64", "w4a-g32", "w8s-channel"))


def site(block: int, module: str, category: str = "mlp") -> Site:
    name = f"model.layers.{block}.{module}"
    return Site(name, block, f"{module}.weight", None, None, False, (64, 64), category, 0)


SITES = tuple(site(block, module) for block in range(4) for module in ("up", "down"))
MAP = ModelMap(4, SITES)


def scores(fisher: list[float]) -> FisherScores:
    keys = [(s.name, BASE) for s in SITES]
    errors = {key: WeightError(1.0, 0.1 + (i * 5 % 8), 0.5, 0.2) for i, key in enumerate(keys)}
    kl = dict(zip(keys, fisher, strict=True))
    return FisherScores(kl, kl, errors, kl)


def test_correlations_are_scipys() -> None:
    fisher = [0.3, 0.1, 0.4, 0.15, 0.9, 0.2, 0.6, 0.5]
    swaps = {(s.name, BASE): v for s, v in zip(SITES, [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0], strict=True)}
    del swaps[SITES[0].name, BASE]
    records = sensitivity_records(MAP, scores(fisher), swaps)
    assert [r.site for r in records] == [s.name for s in SITES]
    assert records[0].swap_kl is None
    assert records[0].bits == BASE.stored_bits((64, 64)) / 64**2
    found = {(c.first, c.second): c for c in rung_correlations(records)}
    relative = [r.error.relative for r in records]
    true = [r.swap_kl for r in records[1:]]
    expected = {
        ("relative error", "fisher"): (relative, fisher),
        ("relative error", "swap KL"): (relative[1:], true),
        ("fisher", "swap KL"): (fisher[1:], true),
    }
    assert found.keys() == expected.keys()
    for pair, (left, right) in expected.items():
        assert found[pair].spearman == pytest.approx(spearmanr(left, right).statistic)
        assert found[pair].sites == len(left)


def test_no_correlation_is_claimed_of_equal_or_too_few_values() -> None:
    assert rung_correlations(sensitivity_records(MAP, scores([1.0] * 8))) == []
    assert rung_correlations(sensitivity_records(MAP, scores([1.0, 2.0] * 4))[:2]) == []


def advice_for(first: dict[Scheme, float]) -> tuple[str, dict[str, str]]:
    """Advice for the first site when the other seven cost 1 at the base scheme."""
    predicted = {(s.name, BASE): 1.0 for s in SITES} | {(SITES[0].name, k): v for k, v in first.items()}
    found = diagnose_sites(MAP, dict.fromkeys((s.name for s in SITES), BASE), predicted)
    assert [d.rank for d in found] == list(range(1, 9))
    assert sum(d.share for d in found) == pytest.approx(1.0)
    words = {d.site: d.recommendation for d in found}
    return words[SITES[0].name], {d.site: d.category for d in found}


def test_advice_prefers_finer_groups_then_bits_then_full_precision() -> None:
    heavy = 20.0  # 20 of 27 in all: 5.9 times the mean of eight sites
    words, _ = advice_for({BASE: heavy, FINER: 5.0, HIGHER: 1.0})
    assert "5.9 x" in words
    assert "w4a-g32 alone is predicted to remove 75%" in words
    words, _ = advice_for({BASE: heavy, FINER: 15.0, HIGHER: 1.0})
    assert words.endswith("use w8s-channel")
    words, _ = advice_for({BASE: heavy, FINER: 15.0})
    assert words.endswith("leave it in full precision")


def test_advice_for_light_and_ordinary_sites() -> None:
    assert advice_for({BASE: 0.1})[0].startswith("tolerates w4a-g64 well")
    assert advice_for({BASE: 1.0})[0].startswith("ordinary at w4a-g64 (1.0 x")


def test_categories_name_the_ends_of_the_stack() -> None:
    _, categories = advice_for({BASE: 1.0})
    assert categories["model.layers.0.up"] == "first block, mlp"
    assert categories["model.layers.2.up"] == "mlp"
    assert categories["model.layers.3.down"] == "last block, mlp"
