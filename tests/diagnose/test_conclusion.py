"""Every verdict from the records it rests on; which cause comes first, and what is left unsaid."""

import msgspec
import pytest

from quantriage.diagnose.conclusion import conclude
from quantriage.diagnose.lint.catalogue import finding
from quantriage.records.diagnosis import (
    Attribution,
    CandidateDiagnosis,
    Judgement,
    Lint,
    LintFinding,
    Split,
    SplitLeg,
    UnitAttribution,
)
from quantriage.records.types import Interval

DOWN, UP, KEY, VALUE = (
    f"model.layers.1.{m}" for m in ("mlp.down_proj", "mlp.up_proj", "self_attn.k_proj", "self_attn.v_proj")
)


def lint(*findings: LintFinding) -> Lint:
    return Lint("candidate", "reference", "gptq", 4, 1000, 0.1, 1000, findings)


def unit(
    name: str, kl: float | None, judgement: Judgement = "fine", swap: float | None = None
) -> UnitAttribution:
    return UnitAttribution(
        unit=name,
        block=1,
        category="mlp",
        layout="w4a-g32",
        bits=4.5,
        relative_error=0.1,
        nearest_error=0.1,
        predicted_kl=kl,
        swap_kl=swap,
        judgement=judgement,
        reason="" if judgement == "fine" else f"said of {name}",
    )


def attribution(*units: UnitAttribution, total: float = 0.2) -> Attribution:
    return Attribution(total, 1.0, units, 10.0, 100.0, 1.0, 300.0, False)


def split(carrier: str) -> Split:
    leg = SplitLeg("runtime", "the same file in x", "x 1", Interval(0.7, 0.6, 0.8), None, None, 0.0, 10)
    return Split((), (leg,), carrier, f"the {carrier} carries it")  # type: ignore[arg-type]


def codes(found: CandidateDiagnosis) -> list[str]:
    return [cause.code for cause in found.causes]


def test_nothing_wrong() -> None:
    found = conclude(lint(), attribution(unit(DOWN, 1e-4), total=2e-3))
    assert (found.verdict, found.causes) == ("healthy", ())
    assert (found.reference, found.candidate, found.layout) == ("reference", "candidate", "gptq")
    assert "0.002" in found.sentence


def test_a_finding_takes_the_measured_kl_of_its_unit_and_explains_its_judgement() -> None:
    found = conclude(
        lint(finding("scaled", DOWN, "twice")),
        attribution(unit(DOWN, 0.3, "damaged", swap=0.4), unit(UP, 0.01)),
    )
    assert found.verdict == "damaged"
    (cause,) = found.causes
    assert (cause.code, cause.units, cause.kl) == ("scaled", (DOWN,), 0.4)
    assert "twice" in cause.sentence
    assert DOWN in found.sentence


def test_damage_without_a_finding_keeps_its_word_and_stands_by_cost() -> None:
    found = conclude(
        lint(finding("zero-scale", UP, "all")),
        attribution(unit(DOWN, 0.5, "damaged"), unit(UP, 0.1), unit(KEY, 0.02, "damaged")),
    )
    assert [(c.code, c.units) for c in found.causes] == [
        ("damaged", (DOWN,)),
        ("zero-scale", (UP,)),
        ("damaged", (KEY,)),
    ]


def test_one_check_in_many_places_is_one_cause() -> None:
    found = conclude(
        lint(finding("swapped-tensors", KEY, "is v"), finding("swapped-tensors", VALUE, "is k")),
        attribution(unit(KEY, 0.1, "damaged"), unit(VALUE, 0.2, "damaged", swap=0.3)),
    )
    (cause,) = found.causes
    assert cause.units == (KEY, VALUE)
    assert cause.kl == pytest.approx(0.4)


def test_what_cannot_be_measured_comes_first() -> None:
    found = conclude(
        lint(finding("nonfinite-scale", KEY, "NaN"), finding("scaled", UP, "x2")),
        attribution(unit(KEY, None, "damaged"), unit(UP, 9.0, "damaged")),
    )
    assert codes(found) == ["nonfinite-scale", "scaled"]
    assert found.causes[0].kl is None


def test_a_block_and_a_norm_are_found_by_name() -> None:
    norm = "model.layers.1.input_layernorm"
    found = conclude(
        lint(finding("block-order", "model.layers.1", "is block 2")),
        attribution(unit(DOWN, 0.1, "damaged"), unit(norm, 0.2, "damaged"), unit("model.layers.10.x", 0.5)),
    )
    assert [(c.code, c.kl) for c in found.causes] == [("block-order", pytest.approx(0.3))]
    found = conclude(
        lint(finding("dense-differs", f"{norm}.weight", "off")), attribution(unit(norm, 0.2, "damaged"))
    )
    assert [(c.code, c.units, c.kl) for c in found.causes] == [("dense-differs", (norm,), 0.2)]


def test_an_error_of_the_whole_checkpoint_has_no_cost_and_counts() -> None:
    found = conclude(
        lint(finding("tokenizer-differs", None, "merges")), attribution(unit(DOWN, 0.0), total=0.0)
    )
    assert found.verdict == "damaged"
    assert [(c.code, c.units, c.kl) for c in found.causes] == [("tokenizer-differs", (), None)]


def test_a_warning_alone_is_told_and_condemns_nothing() -> None:
    found = conclude(
        lint(finding("chat-template-differs", None, "gone")), attribution(unit(DOWN, 1e-4), total=1e-3)
    )
    assert (found.verdict, codes(found)) == ("healthy", ["chat-template-differs"])
    assert "1 lesser finding" in found.sentence


def test_an_info_is_no_cause_and_explains_nothing() -> None:
    found = conclude(lint(finding("rescaled", DOWN, "x")), attribution(unit(DOWN, 0.3, "damaged")))
    assert codes(found) == ["damaged"]


def test_badly_done_hard_and_the_limit() -> None:
    found = conclude(
        lint(), attribution(unit(DOWN, 0.1, "badly done"), unit(UP, 0.05, "hard"), unit(KEY, 0.01))
    )
    assert (found.verdict, codes(found)) == ("badly quantized", ["badly done", "hard"])
    assert "50%" in found.sentence
    found = conclude(lint(), attribution(unit(UP, 0.05, "hard"), total=0.06))
    assert (found.verdict, codes(found)) == ("at the limit of its bits", ["hard"])
    assert conclude(lint(), attribution(unit(UP, 0.001), total=1.5)).verdict == "at the limit of its bits"


@pytest.mark.parametrize("word", ["hard", "badly done"])
def test_a_share_of_nothing_is_nothing(word: Judgement) -> None:
    found = conclude(lint(), attribution(unit(UP, 5e-4, word), total=6e-4))
    assert (found.verdict, found.causes) == ("healthy", ())


def test_another_model_hides_everything_else() -> None:
    found = conclude(
        lint(finding("config-differs", None, "x"), finding("wrong-base", None, "28 of 28")),
        unmeasured="wrong-base",
    )
    assert (found.verdict, codes(found)) == ("not comparable", ["wrong-base"])
    assert "28 of 28" in found.sentence


def test_faults_that_keep_a_file_from_being_measured() -> None:
    found = conclude(
        lint(finding("missing-tensor", f"{DOWN}.weight", "gone")), unmeasured="missing-tensor: gone"
    )
    assert found.verdict == "damaged"
    assert [(c.code, c.units, c.kl) for c in found.causes] == [("missing-tensor", (DOWN,), None)]
    assert "not measured" in found.sentence


def test_runtime_and_data() -> None:
    sound = attribution(unit(DOWN, 1e-4), total=2e-3)
    found = conclude(lint(), sound, split("runtime"))
    assert (found.verdict, codes(found)) == ("healthy", ["runtime"])
    assert found.causes[0].kl == 0.7
    assert "runtime" in found.sentence
    assert codes(conclude(lint(), sound, split("data"))) == ["data"]
    assert conclude(lint(), sound, split("none")).causes == ()
    assert conclude(lint(), sound, split("not comparable")).verdict == "not comparable"


def test_a_unit_worse_than_plain_rounding_stands_before_those_that_could_be_better() -> None:
    worse = msgspec.structs.replace(
        unit(KEY, 0.01, "badly done", swap=0.01), relative_error=0.13, nearest_error=0.1, plain_kl=0.004
    )
    found = conclude(lint(), attribution(unit(DOWN, 0.1, "badly done"), worse))
    assert [(cause.code, cause.units) for cause in found.causes] == [
        ("badly done", (KEY,)),
        ("badly done", (DOWN,)),
    ]
    assert f"{KEY} would lose less rounded plainly" in found.sentence
    warned = conclude(
        lint(finding("large-error", KEY, "13%")), attribution(unit(DOWN, 0.1, "badly done"), worse)
    )
    assert codes(warned) == ["large-error", "badly done"]


def test_a_warning_stands_where_the_attribution_puts_what_it_explains() -> None:
    units = (unit(DOWN, 0.1, "badly done"), unit(UP, 0.05, "badly done"))
    warnings = (finding("dense-differs", KEY, "5%"), finding("large-error", UP, "55%"))
    found = conclude(lint(*warnings), attribution(*units))
    assert (found.verdict, codes(found)) == (
        "badly quantized",
        ["badly done", "large-error", "dense-differs"],
    )
    assert f"50% of it in {DOWN} (badly done)" in found.sentence
