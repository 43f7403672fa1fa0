"""Rounds in turn with engines whose clocks are known, and what the statistics make of them."""

import math
import random

import pytest

from quantriage.errors import EngineError
from quantriage.evaluate.bench_bandwidth import read_bandwidth
from quantriage.evaluate.bench_record import Contestant, bench_record
from quantriage.evaluate.bench_rounds import Conditions, RoundPlan, Timed, run_rounds
from quantriage.evaluate.bench_statistics import geometric, outcome, paired_ratio
from quantriage.evaluate.engines.bench_process import ProfileReply, RoundReply, Started
from quantriage.records.bench import Bench
from quantriage.records.types import Hardware, Interval

PLAN = RoundPlan(prompt=100, new=10, warmup=2, rounds=6, vocabulary=50)


class FakeEngine:
    """An engine with a clock of its own: prefill and step times, all times multiplied by `noise(turn)`."""

    def __init__(self, log, name, prefill, step, noise=lambda turn: 1.0, dies_at=None, profile=((), None)):
        self.log, self.name, self.prefill, self.step, self.noise = log, name, prefill, step, noise
        self.dies_at, self.answer = dies_at, profile
        self.turn, self.ended = 0, False

    def start(self) -> Started:
        return Started("fake 1", "float32", 0.5, 1000)

    def round(self, tokens: list[int], new: int) -> RoundReply:
        assert not self.ended
        self.log.append((self.name, tuple(tokens[:3])))
        self.turn += 1
        if self.turn == self.dies_at:
            raise EngineError(f"{self.name}: it died")
        first, factor = self.prefill, self.noise(self.turn)
        return RoundReply(
            first * factor, (first + new * self.step) * factor, new + 1, 0.1, 5000 + self.turn, None
        )

    def profile(self, tokens: list[int]) -> ProfileReply:
        return ProfileReply(*self.answer)

    def cpu_seconds(self) -> float:
        return 0.0

    def kernels(self) -> tuple[str, ...]:
        return ()

    def end(self) -> None:
        self.ended = True


def test_engines_take_turns_on_the_same_prompts_and_the_first_place_goes_round() -> None:
    log: list[tuple[str, tuple[int, ...]]] = []
    engines = [FakeEngine(log, name, 1.0, 0.1) for name in "abc"]
    timed, _ = run_rounds(engines, PLAN)
    orders = ["".join(name for name, _ in log[i : i + 3]) for i in range(0, len(log), 3)]
    assert orders == ["bca", "cab", "abc", "bca", "cab", "abc", "bca", "cab"]  # two of warm-up first
    prompts = [{tokens for _, tokens in log[i : i + 3]} for i in range(0, len(log), 3)]
    assert all(len(same) == 1 for same in prompts)
    assert len(set.union(*prompts)) == len(prompts)  # never the same twice: a cached prefix would be free
    assert [len(one.rounds) for one in timed] == [6, 6, 6]
    assert [r.place for r in timed[0].rounds] == [0, 2, 1, 0, 2, 1]
    assert timed[0].peak == 5008
    assert all(engine.ended for engine in engines)


def test_an_engine_that_dies_is_left_out_and_the_others_go_on() -> None:
    log: list[tuple[str, tuple[int, ...]]] = []
    engines = [FakeEngine(log, "a", 1.0, 0.1), FakeEngine(log, "b", 1.0, 0.1, dies_at=4)]
    timed, _ = run_rounds(engines, PLAN)
    assert [one.error for one in timed] == ["", "b: it died"]
    assert len(timed[0].rounds) == 6
    assert sum(name == "b" for name, _ in log) == 4
    assert engines[1].ended


def test_all_engines_end_when_the_measurement_is_interrupted() -> None:
    engines = [FakeEngine([], "a", 1.0, 0.1), FakeEngine([], "b", 1.0, 0.1)]

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_rounds(engines, PLAN, interrupt)
    assert all(engine.ended for engine in engines)


def test_a_geometric_mean_and_its_interval_are_those_of_the_closed_form() -> None:
    found = geometric([2.0, 8.0, 4.0])
    assert found.value == pytest.approx(4.0)
    # logs differ by ln 2: standard deviation ln 2, standard error ln 2 / sqrt 3, t(0.975, 2) = 4.302653
    half = 4.302653 * math.log(2) / math.sqrt(3)
    assert found.low == pytest.approx(4 * math.exp(-half), rel=1e-6)
    assert found.high == pytest.approx(4 * math.exp(half), rel=1e-6)
    assert geometric([3.0]) == Interval(
        value=pytest.approx(3.0), low=pytest.approx(3.0), high=pytest.approx(3.0)
    )


def test_noise_that_hits_both_sides_of_a_pair_leaves_the_ratio() -> None:
    shared = [1.0, 3.0, 0.5, 2.0, 7.0, 1.5]
    found = paired_ratio([10 / s for s in shared], [5 / s for s in shared])
    assert found.low == pytest.approx(2.0)
    assert found.high == pytest.approx(2.0)
    with pytest.raises(ValueError, match="do not pair"):
        paired_ratio([1.0], [1.0, 2.0])


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(3)
    covered = 0
    for _ in range(1000):
        found = geometric([math.exp(draw.gauss(0.0, 0.3)) for _ in range(6)])
        covered += found.low <= 1.0 <= found.high
    assert 0.93 < covered / 1000 < 0.97  # 95%, standard error 0.7%; a percentile bootstrap gives 0.88


def test_faster_and_slower_need_the_whole_interval_and_a_change_that_matters() -> None:
    assert outcome(Interval(value=1.2, low=1.1, high=1.3)) == "faster"
    assert outcome(Interval(value=0.8, low=0.7, high=0.9)) == "slower"
    assert outcome(Interval(value=0.8, low=0.6, high=1.05)) == "not told apart"
    assert outcome(Interval(value=1.01, low=1.005, high=1.015)) == "not told apart"


def contestant(name: str, reference: bool, engine: str = "fake", size: int = 4000) -> Contestant:
    layout = "dense" if reference else "w4a-g32"
    return Contestant(
        name,
        f"/models/{name}",
        None,
        name,
        layout,
        layout,
        engine,
        reference,
        size,
        50,
        None,  # type: ignore[arg-type]
    )


def measured(*engines: tuple[Contestant, FakeEngine], bandwidth: float = 1e6) -> Bench:
    timed, _ = run_rounds([engine for _, engine in engines], PLAN)
    pairs: list[tuple[Contestant, Timed]] = list(zip([c for c, _ in engines], timed, strict=True))
    hardware = Hardware(cpu="c", cores=2, memory_bytes=1, device="cpu", compute_dtype="auto", dtype_reason="")
    return bench_record(pairs, [], PLAN, Conditions(0.5, 0.0), hardware, 1, bandwidth)


def test_known_clocks_come_back_as_rates_and_ratios() -> None:
    noise = [1.0, 2.0, 0.7, 1.3, 1.0, 5.0, 1.1, 0.9]
    dense = FakeEngine([], "dense", 0.5, 0.1, lambda turn: noise[turn - 1])
    packed = FakeEngine([], "packed", 1.0, 0.05, lambda turn: noise[turn - 1])
    found = measured((contestant("dense", True), dense), (contestant("packed", False), packed))
    (comparison,) = found.comparisons
    assert comparison.prefill.value == pytest.approx(0.5)
    assert comparison.decode.value == pytest.approx(2.0)
    assert comparison.decode.high - comparison.decode.low < 1e-9  # the noise hit both
    assert (comparison.prefill_outcome, comparison.decode_outcome) == ("slower", "faster")
    assert comparison.first_token.value == pytest.approx(0.5)
    assert "prefill is slower (0.50 times" in comparison.sentence
    kept = noise[2:]
    expected = math.exp(sum(math.log(100 / (0.5 * n)) for n in kept) / 6)
    assert found.entries[0].prefill.value == pytest.approx(expected)
    assert found.sentence.startswith("1 of 1 quantized models are slower")
    assert any("50% of the machine's CPU time" in text for text in found.conditions)


DENSE_STEP = ([("aten::mm", 0.9), ("aten::add", 0.1)], 4000)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (([("aten::mm", 0.9), ("aten::add", 0.1)], 4000), "decompressed-on-load"),
        (([("aten::mm", 0.3), ("aten::bitwise_and", 0.7)], 1000), "dequantized-on-each-call"),
        (([("aten::mm", 0.3), ("aten::copy_", 0.7)], 3400), "time-outside-products"),
        (([], None), "unexplained"),
    ],
)
def test_a_slower_model_is_told_why_by_what_was_measured(profile: tuple, expected: str) -> None:
    dense = FakeEngine([], "dense", 1.0, 0.1, profile=DENSE_STEP)
    packed = FakeEngine([], "packed", 1.0, 0.2, profile=profile)
    # 4000 bytes at 10 tokens a second fill a bandwidth of 40 kB/s: this decode does wait for memory
    found = measured(
        (contestant("dense", True), dense), (contestant("packed", False), packed), bandwidth=4.5e4
    )
    codes = [reason.code for reason in found.comparisons[0].reasons]
    assert expected in codes
    assert "not-bound-by-memory" not in codes
    others = {"decompressed-on-load", "dequantized-on-each-call", "time-outside-products", "unexplained"}
    assert not (others - {expected}) & set(codes)


def test_a_decode_that_does_not_wait_for_memory_is_told_so_and_a_faster_model_needs_no_reason() -> None:
    dense = FakeEngine([], "dense", 1.0, 0.1, profile=DENSE_STEP)
    same = FakeEngine([], "same", 1.0, 0.1)
    found = measured((contestant("dense", True), dense), (contestant("same", False), same), bandwidth=1e6)
    assert "not-bound-by-memory" in [reason.code for reason in found.comparisons[0].reasons]
    quick = FakeEngine([], "quick", 0.5, 0.05)
    found = measured((contestant("dense", True), dense_again()), (contestant("quick", False), quick))
    assert found.comparisons[0].reasons == ()


def dense_again() -> FakeEngine:
    return FakeEngine([], "dense", 1.0, 0.1, profile=DENSE_STEP)


def test_across_engines_the_ratio_is_said_to_be_of_both() -> None:
    pairs = [
        (contestant("dense", True, "one"), dense_again()),
        (contestant("file", False, "two"), FakeEngine([], "file", 2.0, 0.2)),
    ]
    (comparison,) = measured(*pairs).comparisons
    assert not comparison.same_engine
    assert comparison.reasons[0].code == "other-engine"


def test_bandwidth_is_that_of_a_memory_and_not_of_a_cache_line() -> None:
    assert 1e8 < read_bandwidth(1, 40_000_000) < 1e12
