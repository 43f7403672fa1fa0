"""Factors recovered from measurements made of known ones."""

import pytest

from quantriage.numerics.schemes import Scheme
from quantriage.plan.calibrate import scaled, scheme_factors
from quantriage.plan.units import Option, Unit
from quantriage.records.types import SiteInfo

A, B, C = (Scheme.parse(text) for text in ("w4a-g64", "w4s-g64", "w8s-g64"))
KL = {A: (0.02, 0.05, 0.01), B: (0.03, 0.04, 0.02), C: (0.001, 0.002, 0.001)}
UNITS = tuple(
    Unit(
        (SiteInfo(name=f"s{i}", block=i, module="m", category="mlp", shape=(64, 64)),),
        (*(Option(scheme, 100, kl[i]) for scheme, kl in KL.items()), Option(None, 900, 0.0)),
    )
    for i in range(3)
)


def assignment(*schemes: Scheme | None) -> dict[str, Scheme | None]:
    return {f"s{i}": scheme for i, scheme in enumerate(schemes)}


def kl_of(schemes: dict[str, Scheme | None], factors: dict[Scheme, float]) -> float:
    return sum(factors[s] * KL[s][int(name[1])] for name, s in schemes.items() if s is not None)


def test_factors_that_made_the_measurements_come_back() -> None:
    true = {A: 1.1, B: 1.4, C: 1.0}
    given = [assignment(A, A, A), assignment(B, B, B), assignment(A, B, A)]
    found = scheme_factors(UNITS, [(g, kl_of(g, true)) for g in given])
    # The pull to the common factor (1.25) moves them by a few percent.
    assert found[A] == pytest.approx(1.1, rel=0.03)
    assert found[B] == pytest.approx(1.4, rel=0.03)
    assert found[A] < found[C] < found[B]  # C was in no measurement: the common factor


def test_equal_flattery_changes_no_ranking() -> None:
    given = [assignment(A, A, A), assignment(B, B, B)]
    found = scheme_factors(UNITS, [(g, kl_of(g, dict.fromkeys(KL, 1.3))) for g in given])
    assert found == pytest.approx(dict.fromkeys(KL, 1.3))


def test_nothing_measured_changes_nothing() -> None:
    unknown = assignment(A, A, Scheme.parse("w3a-g64"))
    for measured in ([], [(unknown, 0.2)], [(assignment(None, None, None), 0.0)]):
        assert scheme_factors(UNITS, measured) == dict.fromkeys(KL, 1.0)


def test_scaled_units_keep_everything_but_the_prediction() -> None:
    changed = scaled(UNITS, {A: 2.0, B: 1.0, C: 0.5})
    assert [o.kl for o in changed[1].options] == pytest.approx([0.1, 0.04, 0.001, 0.0])
    assert [(o.scheme, o.bytes) for o in changed[0].options] == [
        (o.scheme, o.bytes) for o in UNITS[0].options
    ]
