"""Rounding to GGUF types: a slow GPTQ over any code points, llama.cpp's golden, and gguf-py's reading."""

from pathlib import Path

import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from safetensors.torch import load_file
from textbook_gptq import correlated_hessian, objective, random_weight
from torch import Tensor

from quantriage.errors import CheckpointError, DataError
from quantriage.formats.gguf_blocks import block_values, write_fields
from quantriage.formats.gguf_encode import search_fields
from quantriage.formats.gguf_layouts import LAYOUTS
from quantriage.methods.block_rounding import fed_back, nearest_blocks, plain_blocks, round_blocks
from quantriage.methods.hessian_factor import factorize
from quantriage.methods.protocol import SiteStatistics
from quantriage.numerics.block_types import BLOCK_TYPES
from quantriage.numerics.schemes import Scheme

GOLDEN = Path(__file__).parents[1] / "formats" / "golden" / "gguf_llama_cpp" / "expected.safetensors"
WIDE = 256
every_type = pytest.mark.parametrize("kind", BLOCK_TYPES)


def factor_of(hessian: Tensor):
    return factorize(hessian, hessian.diagonal().argsort(stable=True), 0.01)


def read(kind: str, raw: Tensor) -> Tensor:
    return torch.from_numpy(dequantize(raw.numpy(), GGMLQuantizationType[kind]))


def slow_feedback(weight: Tensor, hessian: Tensor, choices: Tensor) -> Tensor:
    """Values of GPTQ that takes the nearest of choices [out, in, points], columns by falling diagonal."""
    columns = weight.shape[1]
    left, choices = weight.double().clone(), choices.double()
    damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(columns)
    inverse = torch.linalg.inv(damped)  # of the columns still free; the others' rows become zero
    for column in hessian.diagonal().argsort(stable=True).flip(0).tolist():
        of_column = choices[:, column]
        nearest = (of_column - left[:, column, None]).abs().argmin(dim=1, keepdim=True)
        value = of_column.gather(1, nearest)[:, 0]
        error = (left[:, column] - value) / inverse[column, column]
        left -= error.unsqueeze(1) * inverse[column].unsqueeze(0)
        left[:, column] = value
        inverse = inverse - inverse[:, [column]] * inverse[[column]] / inverse[column, column]
    return left


@every_type
def test_feedback_is_textbook_gptq_over_the_types_points(kind):
    weight, hessian = random_weight(1, 4, WIDE), correlated_hessian(2, WIDE)
    factor = factor_of(hessian)
    fields = search_fields(kind, weight, factor.pivots)
    layout, blocks = LAYOUTS[kind], len(fields.codes)
    codes = torch.arange(layout.levels, dtype=torch.uint8).expand(layout.width, -1).T
    values = torch.stack(
        [block_values(kind, code.expand(blocks, -1), fields.scale, fields.offset) for code in codes], dim=-1
    )
    expected = slow_feedback(weight, hessian, values.reshape(4, WIDE, layout.levels))
    found = fed_back(weight, kind, fields, factor, hessian, sweeps=0)
    found_values = block_values(kind, found.codes, found.scale, found.offset).reshape(4, WIDE)
    # one tie broken the other way by float32 changes every column after it; most rows have none
    same = (found_values - expected).abs().amax(dim=1) < 1e-5
    assert int(same.sum()) >= 2
    assert objective(weight, found_values, hessian) < 1.1 * objective(weight, expected, hessian)


@every_type
def test_feedback_wins_by_far_and_no_row_loses(kind):
    weight, hessian = random_weight(3, 24, WIDE), correlated_hessian(4, WIDE)
    scheme = Scheme.named(kind)
    ((result,),) = round_blocks([weight], SiteStatistics(hessian, 1024), [scheme])
    ((plain,),) = plain_blocks([weight], SiteStatistics(hessian, 1024), [scheme])
    assert result.quantized.scheme == scheme
    assert result.quantized.shape == (24, WIDE)
    assert torch.equal(result.quantized.dequantize(), read(kind, result.quantized.raw))
    assert result.objective == pytest.approx(
        objective(weight, result.quantized.dequantize(), hessian), rel=1e-2
    )
    assert result.plain_objective == plain.objective == plain.plain_objective
    assert result.objective < 0.7 * plain.objective
    of_row = [
        ((q.quantized.dequantize() - weight) @ hessian * (q.quantized.dequantize() - weight)).sum(1)
        for q in (result, plain)
    ]
    assert bool((of_row[0] <= of_row[1] * (1 + 1e-4)).all())


@every_type
def test_weighted_error_is_not_above_llama_cpps(kind):
    """llama.cpp's own blocks of this weight, made without a Hessian, against ours with one."""
    golden = load_file(GOLDEN)
    weight, hessian = golden["weights"], correlated_hessian(5, golden["weights"].shape[1])
    ((result,),) = round_blocks([weight], SiteStatistics(hessian, 2048), [Scheme.named(kind)])
    assert result.objective < objective(weight, golden[kind], hessian)


def test_several_weights_and_types_at_once_are_each_alone():
    hessian = correlated_hessian(6, WIDE)
    weights = [random_weight(7, 5, WIDE), random_weight(8, 3, WIDE)]
    schemes = [Scheme.named(kind) for kind in ("Q4_K", "IQ4_NL")]
    statistics = SiteStatistics(hessian, 512)
    together = round_blocks(weights, statistics, schemes)
    for weight, of_weight in zip(weights, together, strict=True):
        for scheme, result in zip(schemes, of_weight, strict=True):
            ((alone,),) = round_blocks([weight], statistics, [scheme])
            # matrix products of other widths sum in another order
            assert result.objective == pytest.approx(alone.objective, rel=0.02)


@every_type
def test_blocks_of_zeros_and_dead_columns_stay_finite(kind):
    weight, hessian = random_weight(9, 3, WIDE), correlated_hessian(10, WIDE)
    weight[0] = 0
    weight[1, :32] = 0
    hessian[40:80] = hessian[:, 40:80] = 0
    ((result,),) = round_blocks([weight], SiteStatistics(hessian, 512), [Scheme.named(kind)])
    values = result.quantized.dequantize()
    assert bool(values.isfinite().all())
    assert float(values[0].abs().max()) == 0
    assert float((values - weight).abs().max()) < float(weight.abs().max())


def test_fields_that_are_written_are_what_was_chosen():
    weight, hessian = random_weight(11, 2, WIDE), correlated_hessian(12, WIDE)
    factor = factor_of(hessian)
    for kind in BLOCK_TYPES:
        found = fed_back(weight, kind, search_fields(kind, weight, factor.pivots), factor, hessian)
        raw = write_fields(kind, found).reshape(2, -1)
        believed = block_values(kind, found.codes, found.scale, found.offset).reshape(2, WIDE)
        assert torch.equal(read(kind, raw).view(torch.int32), believed.view(torch.int32))


def test_bad_weights_and_hessians_are_named():
    scheme, hessian = Scheme.named("Q4_0"), torch.eye(64)
    with pytest.raises(CheckpointError, match="nan"):
        round_blocks([torch.full((2, 64), float("nan"))], SiteStatistics(hessian, 1), [scheme])
    with pytest.raises(DataError, match="Hessian"):
        round_blocks([torch.ones(2, 64)], SiteStatistics(-hessian, 1), [scheme])
    assert nearest_blocks(torch.ones(2, 64), scheme).kind == "Q4_0"
