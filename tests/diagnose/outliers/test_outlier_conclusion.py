"""Answers follow the figures: what is flagged, what is advised, and when nothing is."""

import msgspec
import pytest

from quantriage.diagnose.outliers.conclusion import conclusions
from quantriage.diagnose.outliers.weight_conclusion import concentrated
from quantriage.records.outliers import CarrierChannel, InputOutliers, OutlierConclusion, WeightOutliers
from report.synthetic_outliers import input_of, weight_of
from report.synthetic_run import Shape, sites_of

SITES = sites_of(Shape(blocks=10))


def weights(*ratios: float) -> list[WeightOutliers]:
    """One weight for each ratio, the rest at 1.5."""
    return [weight_of(site, ratio) for site, ratio in zip(SITES, [*ratios, *[1.5] * 99], strict=False)]


def answer(code: str, *arguments: object, blocks: int = 10) -> OutlierConclusion:
    (found,) = [c for c in conclusions(*arguments, blocks) if c.code == code]  # type: ignore[arg-type]
    return found


def test_nothing_stands_out() -> None:
    quiet = msgspec.structs.replace(
        input_of("x", 0, "m", 20.0), channels=(), channels_beyond=0, channels_persistent=0
    )
    found = conclusions(weights()[:5], [quiet], [quiet], 2)
    codes = [c.code for c in found]
    assert codes == ["weights-plain", "channels-plain", "no-massive-states", "no-massive-inputs"]
    assert not any(c.places for c in found)


def test_the_worst_weight_is_named_with_its_channels_and_measured_errors() -> None:
    found = answer("weight-outliers", weights(2.5, 7.0), [], [])
    assert found.places == (SITES[1].name, SITES[0].name)
    assert f"The worst is {SITES[1].name}: its range is 7.0 times" in found.sentence
    assert "input channel 12 of" in found.sentence
    assert "bring 10.0% to 8.0%" in found.action
    assert "not worth" not in found.action


def test_a_gain_that_is_none_is_called_so() -> None:
    heavy = weights(5.0)[0]
    (scheme,) = heavy.schemes
    even = msgspec.structs.replace(heavy, schemes=(msgspec.structs.replace(scheme, error_apart=0.098),))
    assert "not worth a sparse part" in answer("weight-outliers", [even], [], []).action


def test_finer_groups_are_preferred_only_if_they_are_better() -> None:
    heavy = weights(5.0)[0]
    (scheme,) = heavy.schemes

    def action(error: float) -> str:
        coarse = msgspec.structs.replace(scheme, asked="w4a-channel", scheme="w4a-channel", error=error)
        both = msgspec.structs.replace(heavy, schemes=(scheme, coarse))
        return answer("weight-outliers", [both], [], []).action

    assert (
        "Prefer w4a-g64 to w4a-channel: at these sites rounding leaves an error of 10.0% against 20.0%"
        in (action(0.2))
    )
    assert "Granularity matters little" in action(0.105)


def test_which_side_carries() -> None:
    weight = weights(5.0)[0]
    spread = tuple(CarrierChannel(index=i, outliers=1, largest=8.0) for i in range(8))
    on_inputs = msgspec.structs.replace(weight, outliers=1000, input_channels=(), output_channels=spread)
    assert concentrated(weight) == "input"
    assert concentrated(on_inputs) is None
    rows = (CarrierChannel(index=1, outliers=900, largest=8.0),)
    assert concentrated(msgspec.structs.replace(on_inputs, output_channels=rows)) == "output"


@pytest.mark.parametrize(
    ("first", "delimiters", "advice"),
    [
        (8, 0, "Keep the first token's keys and values"),
        (2, 6, "Keep the first token and delimiters"),
        (0, 1, "The tokens have no place in common"),
    ],
)
def test_what_to_keep_in_full_precision(first: int, delimiters: int, advice: str) -> None:
    state = input_of("state before block 3", 3, "state", 640.0, "state")
    state = msgspec.structs.replace(state, massive_first=first, massive_delimiters=delimiters)
    plain = input_of("x", 0, "m", 20.0)
    found = answer("massive-states", weights(), [plain], [state])
    assert found.places == ("state before block 3",)
    assert "up to 640 times the mean magnitude" in found.sentence
    assert found.action.startswith(advice)


def test_channels_that_last_and_channels_that_pass() -> None:
    lasting: InputOutliers = input_of("a", 0, "m", 20.0)
    (channel,) = lasting.channels
    passing = msgspec.structs.replace(
        lasting,
        name="b",
        channels_persistent=0,
        channels=(msgspec.structs.replace(channel, index=6, persistence=0.004),),
    )
    found = conclusions(weights(), [lasting, passing], [lasting], 10)
    by_code = {c.code: c for c in found}
    assert by_code["outlier-channels"].places == ("a",)
    assert "channel 5 (at 93% of tokens)" in by_code["outlier-channels"].sentence
    assert by_code["passing-channels"].places == ("b",)
    assert "channel 6 of the input of b" in by_code["passing-channels"].sentence


def test_columns_that_both_sides_share() -> None:
    heavy = weights(5.0)
    read = input_of(SITES[0].name, 0, "m", 20.0)
    (channel,) = read.channels
    same = msgspec.structs.replace(read, channels=(msgspec.structs.replace(channel, index=12),))
    found = answer("shared-channels", heavy, [same], [same])
    assert found.places == (SITES[0].name,)
    assert f"channel 12 of {SITES[0].name}" in found.sentence
    assert "shared-channels" not in {c.code for c in conclusions(heavy, [read], [read], 10)}


def test_the_belief_in_first_and_last_is_held_against_the_figures() -> None:
    ends = [s.name for s in SITES if s.block in (0, 9)]
    at_ends = [weight_of(s, 5.0 if s.name in ends else 1.5) for s in SITES]
    middle = [weight_of(s, 5.0 if s.block == 4 else 1.5) for s in SITES]
    assert "holds here" in answer("first-and-last", at_ends, [], []).sentence
    said = answer("first-and-last", middle, [], [])
    assert "does not hold here" in said.sentence
    assert "in blocks 4" in said.sentence
    assert "first-and-last" not in {c.code for c in conclusions(at_ends, [], [], 2)}
