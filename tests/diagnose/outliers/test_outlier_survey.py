"""A planted outlier is found by name, a Gaussian model raises no alarm, and streams equal whole tensors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from quantriage.diagnose.fisher import nearest
from quantriage.diagnose.outliers.conclusion import conclusions
from quantriage.diagnose.outliers.inputs import TokenNames
from quantriage.diagnose.outliers.pictured import error_maps, histograms
from quantriage.diagnose.outliers.scheme_waste import error_map, look, wasted
from quantriage.diagnose.outliers.survey import Survey, survey, survey_weights
from quantriage.diagnose.outliers.token_names import delimits
from quantriage.diagnose.outliers.weights import look_at_weight
from quantriage.model.site import Site
from quantriage.numerics.schemes import Scheme
from quantriage.records.outliers import OutlierConclusion
from small_models import Saved, save, some_tokens, stream_of, whole_model_gradients

TOKENS = some_tokens()
SCHEMES = (Scheme.parse("w4a-g16"), Scheme.parse("w4a-channel"))
NAMES = TokenNames(length=16, text=lambda place: f"t{place}", delimits=lambda place: place % 16 == 3)


def surveyed(saved: Saved, spill: Path) -> Survey:
    model, model_map = saved.open()
    return survey(stream_of(model, model_map, TOKENS, spill), model_map, SCHEMES, NAMES)


def answers(found: Survey, blocks: int = 3) -> dict[str, OutlierConclusion]:
    records = [[look.record for look in looks] for looks in (found.weights, found.inputs, found.states)]
    return {c.code: c for c in conclusions(*records, blocks)}  # type: ignore[arg-type]


def site(name: str, shape: tuple[int, int]) -> Site:
    return Site(name, 0, "weight", None, None, False, shape, "mlp", 0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_streamed_inputs_are_those_of_the_whole_model(
    saved_models: dict[str, Saved], name: str, tmp_path: Path
) -> None:
    saved = saved_models[name]
    found = surveyed(saved, tmp_path)
    _, model_map = saved.open()
    named = [i for i in found.inputs if ".experts." not in i.record.name]
    gradients = torch.zeros(TOKENS.tokens.numel(), 100)
    seen = whole_model_gradients(saved.whole, [i.record.name for i in named], TOKENS.tokens, gradients)
    assert len(named) >= 6
    for look_ in named:
        whole = seen[look_.record.name].inputs.double().flatten(0, 1).numpy()
        record = look_.record
        assert record.tokens == len(whole)
        # float32 products in batches of two sequences, not six: the last digits of float32 differ
        assert record.std == pytest.approx(whole.std(), rel=1e-5)
        assert record.mean == pytest.approx(whole.mean(), abs=1e-5 * whole.std())
        assert record.mean_magnitude == pytest.approx(np.abs(whole).mean(), rel=1e-5)
        np.testing.assert_allclose(look_.channel_maximum.numpy(), np.abs(whole).max(axis=0), rtol=1e-4)
    assert {s for i in found.inputs for s in i.record.sites} | set(found.unreached) == set(
        model_map.by_name()
    )


def test_an_experts_input_counts_the_tokens_routed_to_it(
    saved_models: dict[str, Saved], tmp_path: Path
) -> None:
    found = surveyed(saved_models["mixtral"], tmp_path)
    gates = [i.record for i in found.inputs if i.record.block == 1 and ".experts." in i.record.name]
    first = [g for g in gates if len(g.sites) == 2]  # gate and up read one input
    assert sum(g.tokens for g in first) == 2 * TOKENS.tokens.numel()  # two experts a token


def test_states_are_the_hidden_states_of_the_whole_model(llama: Saved, tmp_path: Path) -> None:
    found = surveyed(llama, tmp_path)
    with torch.no_grad():
        hidden = llama.whole.model(TOKENS.tokens, output_hidden_states=True).hidden_states
    for state, whole in zip(found.states[:-1], hidden[:-1], strict=True):  # the last there is after the norm
        assert state.record.maximum == pytest.approx(float(whole.abs().max()), rel=1e-5)
        assert state.record.std == pytest.approx(float(whole.double().std(correction=0)), rel=1e-5)


def test_a_gaussian_model_raises_no_alarm(llama: Saved, tmp_path: Path) -> None:
    found = surveyed(llama, tmp_path)
    assert not any(w.record.warning or w.record.outliers for w in found.weights)
    assert not any(i.record.alert or i.record.channels_beyond for i in (*found.inputs, *found.states))
    assert answers(found).keys() == {
        "weights-plain",
        "channels-plain",
        "no-massive-states",
        "no-massive-inputs",
    }


def test_a_large_gaussian_weight_raises_no_alarm() -> None:
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(3))
    record = look_at_weight(site("g", (512, 1024)), weight, SCHEMES).record
    assert not record.warning
    assert record.beyond["3"] == pytest.approx(0.0027, rel=0.1)
    assert abs(record.kurtosis) < 0.05
    assert (record.outliers, record.input_channels, record.output_channels) == (0, (), ())
    for scheme in record.schemes:  # another draw of the same kind
        assert scheme.wasted == pytest.approx(scheme.wasted_gaussian, abs=0.01)
        assert scheme.error_apart is None


def test_a_planted_weight_outlier_is_found_by_name(tmp_path: Path) -> None:
    saved = save("llama", tmp_path / "model")
    name = "model.layers.1.mlp.up_proj"

    def plant(tensors: dict[str, Tensor]) -> None:
        tensors[f"{name}.weight"][7, 19] = 40 * tensors[f"{name}.weight"].std()

    saved.edit(plant)
    model, model_map = saved.open()
    found = survey_weights(model.load_block, model_map, SCHEMES)
    flagged = [w.record for w in found.weights if w.record.warning]
    (record,) = flagged
    assert record.site == name
    assert [c.index for c in record.input_channels] == [19]
    assert [c.index for c in record.output_channels] == [7]
    assert record.range_ratio > 4
    coarse = record.schemes[1]
    assert coarse.wasted > coarse.wasted_gaussian
    assert coarse.error_apart is not None
    assert coarse.error_apart < coarse.error
    answer = answers(found)["weight-outliers"]
    assert answer.places == (name,)
    assert "input channel 19 of 32 and output channel 7 of 64" in answer.sentence
    assert histograms(found)[0].place == name
    assert found.states == found.inputs == []


def test_a_planted_outlier_channel_is_found_by_name_and_lasts(tmp_path: Path) -> None:
    saved = save("llama", tmp_path / "model")

    def plant(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.input_layernorm.weight"][5] = 80.0

    saved.edit(plant)
    found = surveyed(saved, tmp_path / "spill")
    with_channels = {i.record.name: i.record for i in found.inputs if i.record.channels_persistent}
    record = with_channels["model.layers.1.self_attn.q_proj"]
    assert record.sites[1:] == ("model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.v_proj")
    assert [c.index for c in record.channels] == [5]
    assert record.channels[0].persistence > 0.5
    assert record.channels[0].ratio > 6
    said = answers(found)["outlier-channels"]
    assert "model.layers.1.self_attn.q_proj: channel 5 (at" in said.sentence
    assert "SmoothQuant" in said.action


def test_a_massive_first_token_is_found_with_its_name(tmp_path: Path) -> None:
    saved = save("llama", tmp_path / "model", hidden_size=256, num_attention_heads=4, head_dim=64)
    start = int(TOKENS.tokens[2, 0])

    def plant(tensors: dict[str, Tensor]) -> None:
        tensors["model.embed_tokens.weight"][start, 11] = 3000 * tensors["model.embed_tokens.weight"].std()

    saved.edit(plant)
    found = surveyed(saved, tmp_path / "spill")
    state = found.states[0].record
    places = (TOKENS.tokens.flatten() == start).nonzero().flatten().tolist()
    assert state.alert
    assert state.massive == len(places)
    assert state.massive_first == sum(place % 16 == 0 for place in places) >= 1
    assert state.massive_delimiters == sum(place % 16 == 3 for place in places)
    listed = {(t.sequence, t.position): t for t in state.massive_tokens}
    assert (2, 0) in listed
    assert listed[(2, 0)].token == "t32"
    assert listed[(2, 0)].channel == 11
    assert "massive-states" in answers(found)


def test_wasted_code_points_by_hand() -> None:
    """Sixteen codes, one row: the largest of 16 values takes most of the grid for itself."""
    weight = torch.tensor([[*[0.0, 1.0] * 8, 15.0]])
    row = nearest(weight, Scheme.parse("w4a-channel"))
    assert wasted(weight, row) == pytest.approx(14 / 16)  # 15 lies beyond 3 sigma; 0 and 1 need two codes
    assert wasted(weight[:, :16].contiguous(), nearest(weight[:, :16].contiguous(), row.scheme)) == 0.0
    assert wasted(torch.zeros(2, 8), nearest(torch.zeros(2, 8), row.scheme)) == 0.0


def test_the_error_map_is_the_plain_formula() -> None:
    weight = torch.randn(70, 96, generator=torch.Generator().manual_seed(5))
    scheme = Scheme.parse("w4a-g32")
    difference = nearest(weight, scheme).dequantize() - weight
    found = error_map("s", weight, difference, scheme)
    assert (found.rows_per_cell, found.groups_per_cell) == (3, 1)
    assert (len(found.errors), len(found.errors[0])) == (24, 3)
    by_group = (
        difference.double().view(70, 3, 32).square().mean(-1).sqrt() / weight.double().square().mean().sqrt()
    )
    assert found.errors[23][1] == pytest.approx(float(by_group[69:, 1].max()), rel=1e-3)  # four digits kept
    assert found.errors[4][2] == pytest.approx(float(by_group[12:15, 2].max()), rel=1e-3)


def test_a_group_that_does_not_divide_is_resolved_or_left_out() -> None:
    weight = torch.randn(8, 48, generator=torch.Generator().manual_seed(6))
    found = look("s", weight, Scheme.parse("w4a-g64"), None)
    assert found is not None
    assert (found.waste.asked, found.waste.scheme) == ("w4a-g64", "w4a-g16")
    assert look("s", weight[:, :10].contiguous(), Scheme.parse("w4a-g64"), None) is None


def test_weights_without_spread() -> None:
    for weight in (torch.zeros(4, 32), torch.full((4, 32), 0.5)):
        record = look_at_weight(site("c", (4, 32)), weight, SCHEMES).record
        assert (record.range_ratio, record.kurtosis, record.outliers, record.warning) == (1.0, 0.0, 0, False)
    alone = torch.zeros(32, 32)
    alone[3, 4] = 1.0
    record = look_at_weight(site("a", (32, 32)), alone, SCHEMES).record
    assert record.warning
    assert [c.index for c in record.input_channels] == [4]


def test_pictures_are_of_the_worst(llama: Saved, tmp_path: Path) -> None:
    found = surveyed(llama, tmp_path)
    kept = histograms(found)
    assert [h.role for h in kept if h.kind == "weights"] == ["worst"] * 3 + ["ordinary"]
    ratios = {w.record.site: w.record.range_ratio for w in found.weights}
    assert ratios[kept[0].place] == max(ratios.values())
    maps = error_maps(found.weights)
    errors = {w.record.site: w.record.schemes[0].error for w in found.weights}
    assert errors[maps[0].site] == max(errors.values())


@pytest.mark.parametrize(
    ("text", "is_one"),
    [(".", True), (" ,\n", True), ("\n\n", True), ("", True), ("“", True), (" the", False), ("3", False)],
)
def test_delimiters(text: str, is_one: bool) -> None:
    assert delimits(text) is is_one
