"""Coverage against dense formulas; the same text raises no alarm; a planted mismatch is found by its site."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import energy_distance as one_dimensional_energy

from quantriage.data.token_set import TokenSet
from quantriage.diagnose.coverage import Coverage, Texts, adjusted, cover, prompt_ratios
from quantriage.diagnose.coverage_additions import choose_additions, leading_directions
from quantriage.diagnose.coverage_moments import (
    InputMoments,
    damped_factor,
    gather_moments,
    leverages,
    mismatch,
    side_by_side,
    watch_inputs,
)
from quantriage.diagnose.coverage_pairs import mismatch_matrix
from quantriage.diagnose.coverage_samples import compare_tokens, energy_distance, jensen_shannon
from quantriage.diagnose.coverage_verdict import check_verdict
from quantriage.records.calibration import ExpectedCost, InputCoverage, TwoSample
from quantriage.stream.compute import Compute
from quantriage.stream.states import StateStore
from quantriage.stream.stream import Stream
from small_models import VOCABULARY, Saved, some_tokens, stream_of

EXACT = 2e-4  # float32 sums and a Cholesky factor of condition 1e4 against float64


def inputs(seed: int, tokens: int = 300, width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, width, generator=generator) @ torch.randn(width, width, generator=generator)


def moments(rows: torch.Tensor, parts: int = 1) -> InputMoments:
    total = InputMoments(rows.shape[1], rows.device)
    for part in rows.tensor_split(parts):
        one = InputMoments(rows.shape[1], rows.device)
        one.update(part)
        total.merge(one)
    return total


@pytest.mark.parametrize("parts", [1, 7])
def test_the_streamed_mismatch_is_the_dense_trace(parts: int) -> None:
    calibration, production = inputs(1), inputs(2, tokens=211)
    own = moments(calibration, parts).second_moment()
    factor = damped_factor(own)
    c = calibration.double().T @ calibration.double() / len(calibration)
    p = production.double().T @ production.double() / len(production)
    inverse = torch.linalg.inv(c + 0.01 * c.diagonal().mean() * torch.eye(12, dtype=torch.float64))
    dense = float(torch.trace(p @ inverse))
    streamed = torch.cat([leverages(part, factor) for part in production.split(50)])
    assert float(streamed.mean()) == pytest.approx(dense, rel=EXACT)
    expected = dense / float(torch.trace(c @ inverse))
    assert mismatch(moments(production, parts).second_moment(), factor, own) == pytest.approx(
        expected, rel=EXACT
    )
    torch.testing.assert_close(own.double(), c, rtol=1e-5, atol=1e-5)


def test_merged_ranges_are_those_of_the_whole() -> None:
    rows = inputs(3)
    assert torch.equal(moments(rows, 5).largest, rows.abs().amax(dim=0))


def test_an_input_that_saw_nothing_can_still_be_factored() -> None:
    empty = InputMoments(4, torch.device("cpu"))
    assert torch.equal(damped_factor(empty.second_moment()), torch.eye(4))


def texts_of(saved: Saved, folder: Path, calibration: torch.Tensor, production: torch.Tensor) -> Texts:
    model, model_map = saved.open()
    streams = [
        stream_of(model, model_map, TokenSet.of(tokens, "test"), folder / str(i))
        for i, tokens in enumerate((calibration[0::2], calibration[1::2], production))
    ]
    return Texts((streams[0], streams[1]), streams[2])


def narrow(sequences: int, length: int, below: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, below, (sequences, length), generator=generator)


def test_moments_are_those_of_what_the_module_reads(saved: Saved, tmp_path: Path) -> None:
    model, model_map = saved.open()
    tokens = some_tokens(5)
    stream = stream_of(model, model_map, tokens, tmp_path)
    counts: dict[str, int] = {}

    def on_block(index: int, block: torch.nn.Module) -> None:
        sites = [site for site in model_map.sites if site.block == index]
        found = gather_moments(stream, index, block, sites)
        for site in sites:
            counts[site.name] = found[site.input_group, site.expert].tokens

    side_by_side([stream], on_block)
    plain = [site for site in model_map.sites if site.expert is None]
    assert all(counts[site.name] == tokens.tokens.numel() for site in plain)
    experts = [site for site in model_map.sites if site.expert is not None]
    for group in {(site.block, site.input_group) for site in experts}:
        routed = {s.expert: counts[s.name] for s in experts if (s.block, s.input_group) == group}
        assert sum(routed.values()) == tokens.tokens.numel() * 2  # two experts for each token


def test_moments_are_summed_in_float32_where_blocks_run_in_bfloat16(llama: Saved, tmp_path: Path) -> None:
    model, model_map = llama.open()
    tokens = TokenSet.of(narrow(4, 16, VOCABULARY, seed=1), "test")
    half = Compute(torch.device("cpu"), torch.bfloat16, "asked for")
    stream = Stream(model, model_map.sites, tokens, half, StateStore(tmp_path, 1 << 20))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_block(index: int, block: torch.nn.Module) -> None:
        sites = [site for site in model_map.sites if site.block == index][:1]
        moment = gather_moments(stream, index, block, sites)[sites[0].input_group, None].second_moment()
        rows: list[torch.Tensor] = []
        watch_inputs(stream, index, block, sites, lambda batch: rows.append(batch.inputs.double()))
        all_rows = torch.cat(rows)
        seen.append((moment.double(), all_rows.T @ all_rows / len(all_rows)))

    side_by_side([stream], on_block)
    for found, exact in seen:
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


def test_one_text_against_itself_raises_no_alarm(llama: Saved, tmp_path: Path) -> None:
    tokens = narrow(24, 16, VOCABULARY, seed=1)
    found = cover(texts_of(llama, tmp_path, tokens, tokens), seed=0)
    assert not any(record.alarm for record in found.inputs)
    assert found.activations is not None
    assert found.activations.p_value > 0.5
    assert found.activations.statistic == pytest.approx(0.0, abs=1e-9)
    assert all(record.range_ratio == pytest.approx(1.0) for record in found.inputs)


def test_other_windows_of_one_kind_raise_no_alarm(llama: Saved, tmp_path: Path) -> None:
    found = cover(
        texts_of(llama, tmp_path, narrow(24, 16, VOCABULARY, seed=1), narrow(24, 16, VOCABULARY, seed=2)),
        seed=0,
    )
    assert not any(record.alarm for record in found.inputs)
    ratios = [record.ratio for record in found.inputs if record.ratio is not None]
    assert math.prod(ratios) ** (1 / len(ratios)) == pytest.approx(1.0, abs=0.1)  # 384 tokens of each
    assert found.activations is not None
    assert found.activations.p_value > 0.01


def test_production_of_tokens_never_seen_is_found(llama: Saved, tmp_path: Path) -> None:
    calibration, production = narrow(24, 16, 5, seed=1), narrow(24, 16, VOCABULARY, seed=2)
    found = cover(texts_of(llama, tmp_path, calibration, production), seed=0)
    first = [record for record in found.inputs if record.block == 0]
    assert all(record.alarm for record in first if record.ratio is not None and record.ratio > 1.25)
    assert any(record.alarm for record in first)
    assert found.activations is not None
    assert found.activations.p_value < 0.01
    back = cover(texts_of(llama, tmp_path, production, calibration), seed=0)
    ratios = zip(found.inputs, back.inputs, strict=True)
    assert all(there.ratio > here.ratio for there, here in ratios)  # the narrow text lies inside the wide one


def test_a_planted_direction_is_found_at_its_own_site(llama: Saved, tmp_path: Path) -> None:
    """Token 99's embedding matters to one product alone, through rows that nothing else has."""

    def plant(tensors: dict[str, torch.Tensor]) -> None:
        gate = tensors["model.layers.2.mlp.gate_proj.weight"]
        up = tensors["model.layers.2.mlp.up_proj.weight"]
        direction = tensors["model.embed_tokens.weight"][99]
        unit = direction / direction.norm()
        gate[5], up[5] = 40 * unit, 40 * unit

    before = {name: value.clone() for name, value in llama.tensors().items()}
    llama.edit(plant)
    try:
        calibration = narrow(24, 16, 99, seed=1)
        production = narrow(24, 16, 99, seed=2)
        production[:, 3::4] = 99
        found = cover(texts_of(llama, tmp_path, calibration, production), seed=0)
    finally:
        llama.edit(lambda tensors: tensors.update(before))
    worst, second = sorted(found.inputs, key=lambda record: -(record.ratio or 0.0))[:2]
    assert worst.sites == ("model.layers.2.mlp.down_proj",)
    assert worst.alarm
    assert worst.ratio is not None
    assert second.ratio is not None
    assert worst.ratio > 1.5 * second.ratio
    assert worst.range_ratio is not None
    assert worst.range_ratio > 1.2


def test_rounding_is_judged_under_both_moments(llama: Saved, tmp_path: Path) -> None:
    calibration, production = narrow(8, 16, 5, seed=1), narrow(8, 16, VOCABULARY, seed=2)
    generator = torch.Generator().manual_seed(0)
    noise = {n: torch.randn(v.shape, generator=generator) * 0.01 for n, v in llama.tensors().items()}
    tensors = llama.tensors()

    def rounding(site):  # type: ignore[no-untyped-def]
        name = f"{site.name}.weight"
        return tensors[name] + noise[name]

    found = cover(texts_of(llama, tmp_path, calibration, production), 0, rounding)
    (record,) = [r for r in found.inputs if r.block == 0 and "q_proj" in r.sites[0]]
    with torch.no_grad():
        block = llama.whole.model.layers[0]
        for tokens, value in ((calibration, record.calibrated_error), (production, record.production_error)):
            x = block.input_layernorm(llama.whole.model.embed_tokens(tokens)).flatten(0, 1).double()
            error = sum(
                float((x @ noise[f"{site}.weight"].double().T).square().sum()) for site in record.sites
            )
            power = sum(
                float((x @ tensors[f"{site}.weight"].double().T).square().sum()) for site in record.sites
            )
            assert value == pytest.approx(error / power, rel=1e-3)


def test_pairs_are_the_mismatch_of_whole_texts(llama: Saved, tmp_path: Path) -> None:
    model, model_map = llama.open()
    wide, thin = narrow(12, 16, VOCABULARY, seed=1), narrow(12, 16, 5, seed=2)

    def stream(tokens: torch.Tensor, name: str):  # type: ignore[no-untyped-def]
        return stream_of(model, model_map, TokenSet.of(tokens, name), tmp_path / name)

    found = mismatch_matrix([stream(wide, "a"), stream(thin, "b")], [stream(wide, "c"), stream(thin, "d")])
    assert found[0][0] == pytest.approx(1.0, rel=1e-4)
    assert found[1][1] == pytest.approx(1.0, rel=1e-4)
    assert found[1][0] > 2 * found[0][1]


def test_prompts_are_averaged_over_their_own_tokens() -> None:
    relative = torch.tensor([[0.0, math.log(4.0), 9.0], [math.log(4.0), 0.0, math.log(2.0)]])
    prompt = torch.tensor([[0, 0, -1], [0, 2, 2]])
    found = prompt_ratios(relative, prompt)
    assert found[0] == (pytest.approx(4 ** (2 / 3)), 3)
    assert found[2] == (pytest.approx(2**0.5), 2)
    assert set(found) == {0, 2}


def test_p_values_are_corrected_for_their_number() -> None:
    def record(p: float | None, ratio: float | None, seen: int = 5) -> InputCoverage:
        return InputCoverage(
            sites=("s",),
            block=0,
            ratio=ratio,
            p_value=p,
            outside=None,
            range_ratio=None,
            worst_channel=None,
            worst_channel_ratio=None,
            calibration_tokens=seen,
            production_tokens=5,
        )

    found = adjusted([record(0.004, 3.0), record(0.5, 3.0), record(0.0005, 1.1), record(None, None, 0)])
    assert [r.p_value for r in found] == [pytest.approx(0.006), 0.5, pytest.approx(0.0015), None]
    assert [r.alarm for r in found] == [True, False, False, True]  # certain but small; never reached


def test_energy_distance_in_one_dimension_is_scipys() -> None:
    draw = np.random.default_rng(0)
    left, right = draw.normal(size=20), draw.normal(1.0, size=30)
    both = np.concatenate([left, right])
    distances = np.abs(both[:, None] - both[None, :])
    found = energy_distance(distances, 20, np.arange(50))
    assert found == pytest.approx(one_dimensional_energy(left, right) ** 2)


def test_token_tests_tell_kinds_apart_and_the_same_not() -> None:
    same = compare_tokens(narrow(16, 32, 50, 1), narrow(16, 32, 50, 2), seed=0)
    assert same.test.p_value > 0.01
    other = compare_tokens(narrow(16, 32, 50, 1), narrow(16, 32, 60, 2), seed=0)
    assert other.test.p_value <= 0.002
    assert 0.08 < other.unseen < 0.25  # one token in six is of ten new kinds
    assert all(50 <= token < 60 for token, _ in other.commonest)
    assert other.record(lambda ids: f"t{ids[0]}").commonest_unseen[0][0].startswith("t5")
    itself = compare_tokens(narrow(16, 32, 50, 1), narrow(16, 32, 50, 1), seed=0)
    assert itself.divergence == pytest.approx(0.0, abs=1e-12)
    assert itself.test.p_value > 0.9


def test_jensen_shannon_has_its_ends() -> None:
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 5.0])) == pytest.approx(math.log(2))
    assert jensen_shannon(np.array([1.0, 3.0]), np.array([2.0, 6.0])) == pytest.approx(0.0, abs=1e-15)


def test_leading_directions_are_the_eigenvectors_that_calibration_lacks() -> None:
    calibration = moments(inputs(1)).second_moment()
    basis = torch.linalg.qr(inputs(5, 12, 12))[0]
    production = basis[:, :2] @ torch.diag(torch.tensor([900.0, 500.0])) @ basis[:, :2].T + 0.01 * calibration
    factor = damped_factor(calibration)
    inverse = torch.linalg.inv(factor)
    _, vectors = torch.linalg.eigh(inverse @ production @ inverse.T)
    found = leading_directions(production, factor, 2)
    overlap = torch.linalg.svdvals(found.T @ vectors[:, -2:])
    assert overlap.min() > 0.999


def test_greedy_additions_are_the_best_by_exhaustion_and_skip_repeats() -> None:
    generator = torch.Generator().manual_seed(3)
    half = torch.randn(6, 2, 3, 3, generator=generator)
    grams = half @ half.transpose(-1, -2)
    grams[4] = grams[1] = 3 * grams[1]  # the largest, twice
    found = choose_additions(grams, calibration_windows=4, most=2)

    def left(chosen: list[int]) -> float:
        covered = 4 * torch.eye(3, dtype=torch.float64) + grams[chosen].double().sum(dim=0)
        mean = grams.double().mean(dim=0)
        part = (
            (mean * torch.linalg.inv(covered)).sum(dim=(-1, -2)) * 4 / mean.diagonal(dim1=-2, dim2=-1).sum(-1)
        )
        return float(part.mean())

    assert found.windows[0] == min(range(6), key=lambda i: left([i]))
    assert found.left[0] == pytest.approx(left([found.windows[0]]))
    rest = [i for i in range(6) if i != found.windows[0]]
    assert found.windows[1] == min(rest, key=lambda i: left([found.windows[0], i]))
    everything = choose_additions(grams, calibration_windows=4, most=6)
    assert len(set(everything.windows)) == len(everything.windows)
    assert list(everything.left) == sorted(everything.left, reverse=True)


def test_nothing_is_proposed_from_nothing() -> None:
    assert Coverage().grams.numel() == 0


@pytest.mark.parametrize(
    ("p_value", "fixed", "verdict"),
    [(0.5, 0.5, "covered"), (0.001, 0.99, "differs"), (0.001, 0.5, "not covered"), (0.001, None, "differs")],
)
def test_a_difference_counts_once_it_costs(p_value: float, fixed: float | None, verdict: str) -> None:
    test = TwoSample(what="tokens", statistic=1.0, baseline=0.5, p_value=p_value)
    cost = None
    if fixed is not None:
        cost = ExpectedCost(
            scheme="w4a", method="gptq", predicted=1.0, predicted_fixed=fixed, windows_added=2
        )
    assert check_verdict([test], [], cost)[0] == verdict
