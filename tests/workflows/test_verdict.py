"""The sentence of a verdict says what the figures say."""

import pytest

from quantriage.records.types import EvalResult, Interval, Proof, SequenceScores
from quantriage.workflows.verdict import judge


def _result(label: str, kl: float, kind: str = "uniform") -> EvalResult:
    exactly = Interval(value=kl, low=kl, high=kl)
    return EvalResult(
        label=label,
        kind=kind,  # type: ignore[arg-type]
        bits_per_weight=4.5,
        body_bytes=1,
        file_bytes=None,
        tokens=10,
        perplexity=Interval(value=20.0, low=20.0, high=20.0),
        kl=exactly,
        kl_percentiles={},
        top1_agreement=exactly,
        flips=0.0,
        sequences=SequenceScores(kl=(), nll=(), reference_nll=(), agreement=()),
    )


@pytest.mark.parametrize(
    ("uniform", "words", "proven"),
    [
        (0.1000, "no nearer than the best uniform", True),
        (0.2000, "50% less than the best uniform", True),
        (0.0800, "25% more than the best uniform", False),
    ],
)
def test_compared_with_the_best_uniform(uniform: float, words: str, proven: bool) -> None:
    shipped = _result("shipped", 0.1, "candidate")
    proof = Proof(
        reference_perplexity=Interval(value=19.0, low=19.0, high=19.0),
        results=(_result("plain", 0.4), _result("w4a-g64", uniform), shipped),
        comparisons=(),
        noise_floor=(),
        tokens_digest="",
    )
    verdict = judge(proof, shipped, "plain")
    assert words in verdict.sentence
    assert "75% less than plain rounding" in verdict.sentence
    assert verdict.proven is proven
