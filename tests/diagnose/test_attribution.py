"""Predictions against closed forms and drawn noise; what is measured, in which order; errors; judgements."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diagnose.test_hybrid import disturbed
from formats.tiny_llama import save_dense, save_packed
from quantriage.data.token_set import TokenSet
from quantriage.diagnose.attribution import (
    COMPARED,
    DENSE_ERROR,
    MINOR,
    Clock,
    Measured,
    Prediction,
    additivity,
    compare_plain,
    measure,
    predict,
    worth_measuring,
)
from quantriage.diagnose.change_scores import Change, Shift, score_changes
from quantriage.diagnose.hybrid import pair_of, units_of
from quantriage.diagnose.hybrid_runs import HybridRuns, StateRoom
from quantriage.diagnose.judgement import CULPRIT, Evidence, judge
from quantriage.diagnose.noise import RowNoise, expected_squares
from quantriage.diagnose.unit_errors import UnitError, unit_errors
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.model.causal import CausalModel
from quantriage.model.discover import discover
from quantriage.model.site import Site
from quantriage.numerics.schemes import Scheme
from small_models import Saved, probes, some_tokens, stream_of, whole_model_gradients

TOKENS = some_tokens(4)


def test_expected_squares_are_the_mean_over_drawn_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, gradients = (torch.randn(12, width, generator=generator) for width in (5, 7))
    inputs[:, 2] *= 10  # one outlying channel
    error = torch.randn(7, 5, generator=generator) * torch.arange(1.0, 8.0).unsqueeze(1)
    noise = RowNoise.like(error)
    draws = torch.randn(20000, 7, 5, generator=generator) * noise.variance.sqrt().view(-1, 1)
    effects = torch.einsum("to,doi,ti->dt", gradients, draws, inputs).double()
    for sequences in (1, 3, 12):
        tokens, sums = expected_squares(noise, inputs, gradients, sequences)
        by_sequence = effects.view(len(draws), sequences, -1).sum(dim=2)
        # 20000 squares of normal values: a standard error of 1%.
        assert tokens.tolist() == pytest.approx(effects.square().mean(0).tolist(), rel=0.05)
        assert sums.tolist() == pytest.approx(by_sequence.square().mean(0).tolist(), rel=0.05)


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_predictions_are_the_plain_formula_with_biases(
    saved_models: dict[str, Saved], name: str, tmp_path: Path
) -> None:
    saved = saved_models[name]
    folder = disturbed(saved, tmp_path / "candidate")
    model, model_map = saved.open()
    pair = pair_of(model, open_checkpoint(folder).weights)
    units = units_of(model, model_map, pair)
    errors = unit_errors(pair, units)
    stream = stream_of(model, model_map, TOKENS, tmp_path / "spill")
    found = predict(stream, pair, units, errors, seed=5)
    sites = [unit for unit in units if unit.site is not None]
    assert found.keys() == {unit.name for unit in sites}
    assert all(p.nearest is None for p in found.values())  # nothing is stored in codes
    drawn = probes(saved.whole, TOKENS.tokens, torch.Generator().manual_seed(5))
    names = [unit.name for unit in sites]
    seen = whole_model_gradients(saved.whole, names, TOKENS.tokens, drawn)
    token, sequence = {}, {}
    for unit in sites:
        changes = [(pair.read(t, True) - pair.read(t, False)).double() for t in unit.tensors]
        weight = changes[0].T if unit.site is not None and unit.site.transposed else changes[0]
        moved = seen[unit.name].inputs.double() @ weight.T
        moved += changes[1] if len(changes) > 1 else 0.0
        effect = (moved * seen[unit.name].gradients.double()).sum(dim=-1)
        share = 0.5 / TOKENS.tokens.numel()
        token[unit.name] = share * float(effect.square().sum())
        sequence[unit.name] = share * float(effect.sum(dim=1).square().sum())
    for unit in sites:
        same = [u.name for u in sites if u.site and unit.site and u.site.module == unit.site.module]
        level = sum(sequence[n] for n in same) / sum(token[n] for n in same)
        expected = (token[unit.name] * level * sequence[unit.name]) ** 0.5
        assert found[unit.name].actual == pytest.approx(expected, rel=1e-2, abs=1e-3 * max(sequence.values()))


def test_noise_is_predicted_as_drawn_noise_is_scored(llama: Saved, tmp_path: Path) -> None:
    model, model_map = llama.open()
    draws = [f"draw {i}" for i in range(200)]
    generator = torch.Generator().manual_seed(1)

    def changes(site: Site, weight: Tensor) -> dict[str, Change]:
        if site.name != "model.layers.1.mlp.up_proj":
            return {}
        error = 0.01 * weight
        found: dict[str, Change] = {"noise": RowNoise.like(error)}
        norms = error.square().mean(dim=1, keepdim=True).sqrt()
        for draw in draws:
            found[draw] = Shift(norms * torch.randn(weight.shape, generator=generator))
        return found

    scores = score_changes(stream_of(model, model_map, TOKENS, tmp_path), changes, seed=2)
    for level in (scores.per_token, scores.per_sequence):
        ((_, expected),) = [item for item in level.items() if item[0][1] == "noise"]
        drawn = [value for (_, label), value in level.items() if label != "noise"]
        # One sequence's square varies by 140%; 4 sequences and 200 draws leave 5%.
        assert sum(drawn) / len(drawn) == pytest.approx(expected, rel=0.15)


def test_errors_by_unit_say_how_a_tensor_is_stored(llama: Saved, tmp_path: Path) -> None:
    copy.deepcopy(llama.whole).to(torch.bfloat16).save_pretrained(tmp_path / "half")  # others share the model
    model, model_map = llama.open()
    pair = pair_of(model, open_checkpoint(tmp_path / "half").weights)
    units = units_of(model, model_map, pair)
    for error in unit_errors(pair, units).values():
        assert (error.layout, error.bits, error.quantized, error.faulty) == ("dense", 16.0, False, 0)
        assert 0 < error.relative < 0.003
        assert error.relative == error.nearest == error.expected  # a cast is all there is
    same = unit_errors(pair_of(model, model.checkpoint.weights), units)
    assert not any(error.differs for error in same.values())


def test_what_matters_is_measured_and_the_rest_is_not() -> None:
    predictions = {f"u{i}": Prediction(kl, kl, None) for i, kl in enumerate((1.0, 50.0, 40.0, 5.0, 4.0))}
    assert worth_measuring(predictions) == ["u1", "u2", "u3"]  # 5% of the total is left
    equal = {f"u{i}": Prediction(1.0, 1.0, None) for i in range(1 + int(1 / MINOR))}
    assert worth_measuring(equal) == []  # no culprit among so many equals
    assert worth_measuring({}) == []


def measured(
    saved: Saved, folder: Path, seconds: float, scratch: Path
) -> tuple[Measured, HybridRuns, list[str]]:
    model, model_map = saved.open()
    pair = pair_of(model, open_checkpoint(folder).weights)
    units = list(units_of(model, model_map, pair))
    errors = unit_errors(pair, units)
    predictions = predict(stream_of(model, model_map, TOKENS, scratch / "f"), pair, units, errors, seed=0)
    stream = stream_of(model, model_map, TOKENS, scratch / "x")
    runs = HybridRuns(stream, pair, units, StateRoom(scratch / "room", 1 << 30))
    return measure(runs, errors, predictions, Clock(seconds)), runs, worth_measuring(predictions)


def test_without_time_only_the_total_is_measured(llama: Saved, tmp_path: Path) -> None:
    folder = disturbed(llama, tmp_path / "candidate")
    found, runs, wanted = measured(llama, folder, 0.0, tmp_path)
    assert wanted
    assert found.truncated
    assert found.swaps == found.restores == {}
    assert found.total == pytest.approx(runs.score(list(runs.units)).kl)


def test_swaps_and_restores_are_scores_of_hybrids(llama: Saved, tmp_path: Path) -> None:
    folder = disturbed(llama, tmp_path / "candidate")
    found, runs, wanted = measured(llama, folder, 600.0, tmp_path)
    assert not found.truncated
    errors = unit_errors(runs.pair, runs.units.values())
    outer = {name for name, unit in runs.units.items() if unit.site is None}
    alone = {name for name in outer if errors[name].relative > DENSE_ERROR}
    assert set() < alone < outer
    assert found.swaps.keys() == alone | set(wanted)
    assert found.together == runs.score(outer - alone).kl > 0
    for name, kl in found.swaps.items():
        assert kl == runs.score({name}).kl
    assert found.restores
    for name, gain in found.restores.items():
        assert gain == pytest.approx(found.total - runs.score(runs.units.keys() - {name}).kl)


def test_plain_rounding_is_measured_beside_what_is_stored(tmp_path: Path) -> None:
    scheme = Scheme.parse("w4a-g32")
    opened = CausalModel(open_checkpoint(save_dense(tmp_path / "reference")))
    save_packed(tmp_path / "candidate", lambda name: scheme)
    model_map = discover(opened)
    pair = pair_of(opened, open_checkpoint(tmp_path / "candidate").weights)
    units = list(units_of(opened, model_map, pair))
    errors = unit_errors(pair, units)
    units = [unit for unit in units if errors[unit.name].differs]
    tokens = TokenSet.of(TOKENS.tokens % 64, "random")
    predictions = predict(stream_of(opened, model_map, tokens, tmp_path / "f"), pair, units, errors, seed=0)
    stream = stream_of(opened, model_map, tokens, tmp_path / "x")
    runs = HybridRuns(stream, pair, units, StateRoom(tmp_path / "room", 1 << 30))
    assert compare_plain(runs, errors, predictions, Clock(600.0), 1.1) == {}  # no error is larger
    found = compare_plain(runs, errors, predictions, Clock(600.0), 0.9)
    assert len(found) == COMPARED
    for name, (swap, plain) in found.items():
        assert swap == runs.score({name}).kl
        assert swap == pytest.approx(plain, rel=0.05)  # it is plainly rounded; scales differ in the last bit
    assert compare_plain(runs, errors, predictions, Clock(0.0), 0.9) == {}


def test_additivity_sums_what_is_known() -> None:
    found = Measured(total=2.0, swaps={"a": 1.0}, together=0.1)
    predictions = {"a": Prediction(9.0, 9.0, None), "b": Prediction(0.5, 0.5, None)}
    assert additivity(found, ["a", "b", "norm"], predictions) == pytest.approx((1.0 + 0.5 + 0.1) / 2.0)
    assert additivity(Measured(total=0.0), [], {}) is None


ERROR = UnitError("w4a-g64", 4.3, 0.1, 0.1, 0.1, 0.0, 0)
HEALTHY = Evidence(ERROR, Prediction(0.01, 0.01, 0.01), kl=0.01, total=1.0, units=200, sibling_ratio=1.0)
CARRIES = replace(HEALTHY, kl=0.5, prediction=Prediction(0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("evidence", "word", "says"),
    [
        (HEALTHY, "fine", ""),
        (replace(HEALTHY, kl=CULPRIT / 2), "fine", ""),
        (replace(HEALTHY, error=replace(ERROR, faulty=3)), "damaged", "3 of its values are NaN"),
        (replace(HEALTHY, error=replace(ERROR, relative=0.4)), "damaged", "4.0 times what w4a-g64 explains"),
        # error feedback: a large error where it does not hurt
        (
            replace(HEALTHY, error=replace(ERROR, relative=0.4), prediction=Prediction(0.001, 0.01, 0.002)),
            "fine",
            "",
        ),
        # a tool that rounds all layers so
        (replace(HEALTHY, error=replace(ERROR, relative=0.4), sibling_ratio=4.0), "fine", ""),
        (
            replace(HEALTHY, error=replace(ERROR, relative=0.15), prediction=Prediction(0.2, 0.02, 0.01)),
            "damaged",
            "structure",
        ),
        (
            replace(HEALTHY, error=UnitError("dense", 16.0, 0.3, 0.0, 0.0, 0.0, 0), prediction=None),
            "damaged",
            "full precision",
        ),
        (replace(HEALTHY, error=replace(ERROR, beside=0.5)), "damaged", "its bias"),
        # no error feedback: it costs what plain rounding scaled to its size would, if less than random errors
        (
            replace(HEALTHY, error=replace(ERROR, relative=0.4), prediction=Prediction(0.003, 0.01, 0.0002)),
            "damaged",
            "0.3 times",
        ),
        # error feedback for inputs that do not occur: larger and dearer than plain rounding
        (
            replace(HEALTHY, error=replace(ERROR, relative=0.12), kl=0.002, plain_kl=0.001),
            "badly done",
            "1.2 times that of plain rounding in w4a-g64 and costs 2 times",
        ),
        # error feedback as it should be: larger and cheaper
        (replace(HEALTHY, error=replace(ERROR, relative=0.12), kl=0.001, plain_kl=0.002), "fine", ""),
        # scales that clip: smaller and dearer, of which nothing is said where it carries little
        (replace(HEALTHY, error=replace(ERROR, relative=0.09), kl=0.002, plain_kl=0.001), "fine", ""),
        # a prediction alone condemns nothing
        (
            replace(HEALTHY, error=replace(ERROR, relative=0.12), prediction=Prediction(0.01, 0.01, 0.002)),
            "fine",
            "",
        ),
        (replace(CARRIES, optimal_kl=0.1), "badly done", "rounded to nearest"),
        (replace(CARRIES, optimal_kl=0.4), "hard", "would leave 80%"),
        (replace(CARRIES, prediction=Prediction(0.5, 0.4, 0.1)), "badly done", "plain rounding"),
        (replace(CARRIES, prediction=Prediction(0.5, 0.1, None)), "badly done", "5.0 times"),
        (replace(CARRIES, prediction=Prediction(0.5, 0.5, None)), "hard", "random ones of their size"),
    ],
)
def test_the_word_follows_from_the_figures(evidence: Evidence, word: str, says: str) -> None:
    found, reason = judge(evidence)
    assert found == word
    assert says in reason
    assert bool(reason) == (word != "fine")
