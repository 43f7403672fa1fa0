"""Rows that make up for each other, against the closed form, a dense factor, and rows by themselves."""

import pytest
import torch
from textbook_gptq import correlated_hessian, random_weight
from torch import Tensor

from quantriage.errors import DataError, UsageError
from quantriage.methods.block_rounding import round_blocks
from quantriage.methods.gptq import Gptq, GptqOptions
from quantriage.methods.objective import loss_error
from quantriage.methods.protocol import SiteStatistics
from quantriage.methods.row_coupling import RowCoupling
from quantriage.methods.rtn import Rtn
from quantriage.numerics.schemes import Scheme

DAMPING = 0.3  # of the mean diagonal


def damped(moment: Tensor) -> Tensor:
    moment = moment.double() / moment.double().diagonal().mean()
    return moment + DAMPING * torch.eye(len(moment), dtype=torch.float64)


def statistics_of(weight: Tensor, moments: tuple[Tensor, ...]) -> SiteStatistics:
    return SiteStatistics(correlated_hessian(2, weight.shape[1]), 192, (moments,))


def test_the_last_panel_takes_up_all_that_it_can() -> None:
    moment, weight = correlated_hessian(3, 12), random_weight(4, 12, 8)
    coupling = RowCoupling([moment], 2)
    first, second = coupling.panels
    assert sorted(torch.cat([first, second]).tolist()) == list(range(12))
    assert torch.equal(coupling.target(0, weight, torch.zeros_like(weight)), weight[first])
    errors = torch.zeros_like(weight)
    errors[first] = random_weight(5, len(first), 8)
    whole = damped(moment)
    # d tr(M E H E^T) / d E_second = 0, whatever H is.
    best = -torch.linalg.solve(whole[second][:, second], whole[second][:, first] @ errors[first].double())
    target = coupling.target(1, weight, errors)
    torch.testing.assert_close(target.double(), weight[second].double() + best, atol=1e-5, rtol=1e-5)


def test_row_by_row_it_is_the_unit_factor_of_the_second_moment() -> None:
    moment, weight = correlated_hessian(6, 9), random_weight(7, 9, 5)
    coupling = RowCoupling([moment], 9)
    # M = (1 + P) E (1 + P)^T with P_mi != 0 for m visited before i: rows are visited first to
    # last, so P is upper; a Cholesky factor of the reversed matrix is lower.
    lower = torch.linalg.cholesky(damped(moment).flip(0, 1))
    unit = (lower / lower.diagonal()).flip(0, 1)
    errors = torch.zeros_like(weight)
    for row, panel in enumerate(coupling.panels):
        assert panel.tolist() == [row]
        expected = weight[row].double() - unit[:row, row] @ errors[:row].double()
        target = coupling.target(row, weight, errors)[0]
        torch.testing.assert_close(target.double(), expected, atol=1e-5, rtol=1e-5)
        errors[row] = random_weight(8 + row, 1, 5)[0]


def test_runs_of_rows_do_not_know_of_each_other() -> None:
    moments = [correlated_hessian(1, 6), correlated_hessian(2, 6)]
    weight, errors = random_weight(3, 12, 4), torch.zeros(12, 4)
    coupling = RowCoupling(moments, 3)
    errors[coupling.panels[0]] = 1.0
    alone = errors.clone()
    alone[6:] = 0.0
    upper = coupling.panels[1] < 6
    whole, half = coupling.target(1, weight, errors), coupling.target(1, weight, alone)
    assert torch.equal(whole[upper], half[upper])
    assert torch.equal(half[~upper], weight[coupling.panels[1][~upper]])
    assert not torch.equal(whole[~upper], half[~upper])


@pytest.mark.parametrize("name", ["w4a-g16", "w3a-g16", "w2s-g16", "w4s-channel", "w8a-g16"])
def test_it_costs_the_loss_less_than_rows_by_themselves(name: str) -> None:
    weight, moment = random_weight(9, 36, 48), correlated_hessian(10, 36)
    statistics, scheme = statistics_of(weight, (moment,)), Scheme.parse(name)
    by_panels = {n: Gptq(GptqOptions(panels=n)).quantize(weight, statistics, [scheme])[0] for n in (1, 4, 36)}
    costs = {}
    for panels, result in by_panels.items():
        change = result.quantized.dequantize() - weight
        costs[panels] = loss_error(change, statistics.hessian, (moment,))
        assert result.objective == pytest.approx(
            costs[panels] / loss_error(weight, statistics.hessian, (moment,)), rel=1e-4
        )
    assert costs[4] < 0.95 * costs[1]
    assert costs[36] < costs[4]
    assert by_panels[36].objective < Rtn().quantize(weight, statistics, [scheme])[0].objective


def test_all_weights_and_schemes_of_a_call_get_what_they_get_alone() -> None:
    weights = [random_weight(11, 24, 32), random_weight(12, 8, 32)]
    moments = [(correlated_hessian(13, 24),), (correlated_hessian(14, 8),)]
    schemes = [Scheme.parse(name) for name in ("w4a-g16", "w3s-channel", "w4s-tensor")]
    hessian = correlated_hessian(15, 32)
    method = Gptq(GptqOptions(panels=5))
    together = method.quantize_many(weights, SiteStatistics(hessian, 99, tuple(moments)), schemes)
    for weight, own, found in zip(weights, moments, together, strict=True):
        for scheme, result in zip(schemes, found, strict=True):
            alone = method.quantize(weight, SiteStatistics(hessian, 99, (own,)), [scheme])[0].quantized
            assert torch.equal(result.quantized.scale, alone.scale)
            assert (result.quantized.codes != alone.codes).float().mean() < 0.01  # ties of float32 products


def test_without_gradients_rows_are_rounded_by_themselves() -> None:
    weight, scheme = random_weight(16, 12, 32), Scheme.parse("w4a-g16")
    plain = Gptq().quantize(weight, SiteStatistics(correlated_hessian(2, 32), 192), [scheme])[0].quantized
    zeros = statistics_of(weight, (torch.zeros(12, 12),))
    found = Gptq(GptqOptions(panels=4)).quantize(weight, zeros, [scheme])[0].quantized
    assert torch.equal(found.codes, plain.codes)
    assert torch.equal(found.scale, plain.scale)


@pytest.mark.parametrize("kind", ["Q4_0", "IQ4_NL", "Q4_1"])
def test_block_types_too(kind: str) -> None:
    weight, moment = random_weight(17, 36, 64), correlated_hessian(18, 36)
    statistics, scheme = statistics_of(weight, (moment,)), Scheme.named(kind)
    ((coupled,),) = round_blocks([weight], statistics, [scheme])
    ((alone,),) = round_blocks([weight], SiteStatistics(statistics.hessian, 192), [scheme])
    cost, other = (
        loss_error(one.quantized.dequantize() - weight, statistics.hessian, (moment,))
        for one in (coupled, alone)
    )
    assert cost < 0.95 * other
    assert coupled.objective < coupled.plain_objective


def test_what_does_not_fit_is_refused() -> None:
    weight, scheme = random_weight(19, 12, 32), Scheme.parse("w4a-g16")
    with pytest.raises(DataError, match=r"gradients at \[8\] outputs: expected \[12\]"):
        Gptq().quantize(weight, statistics_of(weight, (correlated_hessian(1, 8),)), [scheme])
    broken = correlated_hessian(1, 12)
    broken[3, 3] = float("nan")
    with pytest.raises(DataError, match="second moment of outputs"):
        RowCoupling([broken], 4)
    with pytest.raises(UsageError, match="0 panels"):
        GptqOptions(panels=0)
