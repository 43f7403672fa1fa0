"""Encoders of GGUF types: gguf-py reads what they meant, and no plain or upstream choice is better.

Errors are compared on the weights of the golden, which llama.cpp itself encoded in every type.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file
from torch import Tensor

from quantriage.errors import CheckpointError
from quantriage.formats.gguf_blocks import block_values
from quantriage.formats.gguf_encode import (
    ENCODERS,
    bits_per_weight,
    search_fields,
    smallest_not_below,
    types_above,
)
from quantriage.formats.gguf_layouts import LAYOUTS

EXPECTED = load_file(Path(__file__).parent / "golden" / "gguf_llama_cpp" / "expected.safetensors")
SEARCHED = [kind for kind in ENCODERS if kind in LAYOUTS and kind != "TQ2_0"]
PLAIN = [kind for kind in ENCODERS if kind not in SEARCHED]
LEGACY = {"Q4_K": "Q4_0", "IQ4_XS": "Q4_0", "IQ4_NL": "Q4_0", "Q5_K": "Q5_0", "Q6_K": "Q5_1"}


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def heavy(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Weights with outliers, of scales that differ between columns."""
    values = normal(rows, columns, seed)
    return values * values.abs() * torch.logspace(-1, 1, columns)


def decode(kind: str, raw: Tensor) -> Tensor:
    return torch.from_numpy(dequantize(raw.numpy(), Kind[kind]))


def mean_square(
    kind: str, weight: Tensor, importance: Tensor | None = None, by: Tensor | None = None
) -> float:
    """Error of a type whose search was given `importance`, each column weighed by `by`."""
    left = decode(kind, ENCODERS[kind](weight, importance)).to(torch.float64) - weight
    return float((left.square() * (1 if by is None else by)).mean())


@pytest.mark.parametrize("kind", SEARCHED)
@pytest.mark.parametrize("make", [normal, heavy])
def test_gguf_py_reads_what_the_encoder_believes(kind, make):
    weight = make(5, 512)
    importance = torch.rand(512, generator=torch.Generator().manual_seed(1))
    for weights in (None, importance):
        raw = ENCODERS[kind](weight, weights)
        width, nbytes = GGML_QUANT_SIZES[Kind[kind]]
        assert raw.dtype == torch.uint8
        assert raw.shape == (5, 512 // width * nbytes)
        fields = search_fields(kind, weight, weights)
        believed = block_values(kind, fields.codes, fields.scale, fields.offset).reshape(5, 512)
        assert torch.equal(decode(kind, raw).view(torch.int32), believed.view(torch.int32))


@pytest.mark.parametrize("kind", SEARCHED)
def test_error_is_not_above_llama_cpps(kind):
    """llama.cpp was told that all columns matter alike, and weighs large weights more on its own account."""
    weight = EXPECTED["weights"]
    upstream = float((EXPECTED[kind].double() - weight).square().mean())
    assert mean_square(kind, weight) <= upstream


@pytest.mark.parametrize("kind", [kind for kind in SEARCHED if "K" not in kind and "IQ" not in kind])
@pytest.mark.parametrize("make", [normal, heavy])
def test_no_block_is_worse_than_gguf_pys(kind, make):
    weight = make(16, 512)
    upstream = torch.from_numpy(dequantize(quantize(weight.numpy(), Kind[kind]), Kind[kind]))
    ours = decode(kind, ENCODERS[kind](weight, None))

    def errors(values: Tensor) -> Tensor:
        return (values.double() - weight).square().reshape(-1, 32).sum(1)

    # the search sums in float32, gguf-py's own scale may therefore look worse by its rounding
    assert bool((errors(ours) <= errors(upstream) * (1 + 1e-5)).all())
    assert float(errors(ours).sum()) < float(errors(upstream).sum())


@pytest.mark.parametrize(("kind", "legacy"), LEGACY.items())
@pytest.mark.parametrize("make", [normal, heavy])
def test_newer_types_beat_the_legacy_type_of_their_bits(kind, legacy, make):
    weight = make(16, 512)
    assert mean_square(kind, weight) < mean_square(legacy, weight)


@pytest.mark.parametrize("family", [["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16"],
                                    ["Q4_0", "Q5_0", "Q8_0", "F32"], ["Q4_1", "Q5_1", "Q8_0"],
                                    ["TQ2_0", "Q2_K", "Q3_K", "IQ4_XS", "Q5_K"]])  # fmt: skip
def test_more_bits_are_closer(family):
    weight = normal(16, 512)
    errors = [mean_square(kind, weight) for kind in family]
    assert all(more < fewer for fewer, more in pairwise(errors)), errors


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "IQ4_NL"])
def test_scale_against_every_float16(kind):
    """All float16 scales of any use are tried for each block: the search comes within 1% of the best."""
    points = torch.tensor(LAYOUTS[kind].points, dtype=torch.float32)
    bits = torch.arange(0, 0x7C00, dtype=torch.int32).to(torch.int16)
    halves = bits.view(torch.float16).to(torch.float32)
    halves = halves[(halves > 2e-3) & (halves < 2)]
    scales = torch.cat((halves, -halves))
    weight, importance = normal(12, 32), torch.rand(32, generator=torch.Generator().manual_seed(1))
    best = []
    for row in weight:
        steps = row / scales.unsqueeze(1)
        order = points.sort().values
        right = torch.searchsorted(order, steps.contiguous()).clamp(1, len(order) - 1)
        low, high = order[right - 1], order[right]
        near = torch.where(steps - low <= high - steps, low, high) * scales.unsqueeze(1)
        best.append(float(((near - row).square() * importance).sum(1).min()))
    found = mean_square(kind, weight, importance, importance) * weight.numel()
    assert sum(best) * (1 - 1e-5) <= found <= sum(best) * 1.01  # measured: 1.002 to 1.004


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1"])
def test_line_against_a_fine_grid_of_scales_and_minima(kind):
    weight = normal(12, 32)
    top = LAYOUTS[kind].levels - 1
    best = 0.0
    for row in weight:
        low, high = float(row.min()), float(row.max())
        ends = torch.linspace(-0.1, 0.25, 71) * (high - low)
        starts, stops = torch.meshgrid(low + ends, high - ends, indexing="ij")
        scale = ((stops - starts) / top).flatten().half().float().unsqueeze(1)
        start = starts.flatten().half().float().unsqueeze(1)
        near = ((row - start) / scale).round().clamp(0, top) * scale + start
        best += float((near - row).square().sum(1).min())
    found = mean_square(kind, weight) * weight.numel()
    assert found <= best * 1.02  # measured: 1.003 at 4 bits, 1.011 at 5


@pytest.mark.parametrize("kind", SEARCHED)
def test_importance_moves_error_to_where_it_matters_less(kind):
    weight = normal(16, 512)
    importance = torch.logspace(-2, 2, 512)[torch.randperm(512, generator=torch.Generator().manual_seed(2))]
    with_it = mean_square(kind, weight, importance, importance)
    without = mean_square(kind, weight, None, importance)
    assert with_it < without


@pytest.mark.parametrize("kind", SEARCHED)
def test_only_the_ratio_of_importances_counts(kind):
    weight, importance = heavy(3, 256), torch.rand(256, generator=torch.Generator().manual_seed(3))
    raw = ENCODERS[kind](weight, importance)
    for factor in (2.0**-60, 2.0**60):
        assert torch.equal(ENCODERS[kind](weight, importance * factor), raw)


@pytest.mark.parametrize("kind", SEARCHED)
def test_rows_do_not_depend_on_each_other(kind):
    weight = heavy(300, 512)  # more than one chunk
    raw = ENCODERS[kind](weight, None)
    rows = [0, 150, 299]
    assert torch.equal(ENCODERS[kind](weight[rows], None), raw[rows])


@pytest.mark.parametrize("kind", ENCODERS)
def test_degenerate_rows(kind):
    weight = torch.zeros(7, 256)
    weight[1] = 0.5
    weight[2] = -0.5
    weight[3, 17] = 3.0
    weight[4] = 1e-30
    weight[5] = torch.linspace(-1, 1, 256) * 1e-3
    weight[6] = torch.linspace(1, 2, 256)
    none = torch.zeros(256)
    for importance in (None, none):
        values = decode(kind, ENCODERS[kind](weight, importance))
        assert bool(values.isfinite().all())
        assert not values[0].any()
    values = decode(kind, ENCODERS[kind](weight, None))
    assert float((values[1:3] - weight[1:3]).abs().max()) <= 0.05
    assert float((values[5] - weight[5]).abs().max()) < 1e-3
    assert float(values[3, 17]) == pytest.approx(3.0, rel=0.15)


def test_values_beyond_float16_are_held_at_its_end():
    weight = torch.full((1, 256), 1e30)
    for kind in SEARCHED:
        assert bool(decode(kind, ENCODERS[kind](weight, None)).isfinite().all()), kind


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_types_are_gguf_pys(kind):
    weight = heavy(20, 256)
    expected = quantize(weight.numpy(), Kind[kind])
    assert np.array_equal(ENCODERS[kind](weight, None).numpy(), expected.view(np.uint8).reshape(20, -1))


def test_what_cannot_be_encoded():
    with pytest.raises(CheckpointError, match=r"\(2, 64\) cannot be Q4_K"):
        ENCODERS["Q4_K"](torch.zeros(2, 64), None)
    with pytest.raises(CheckpointError, match="undefined"):
        ENCODERS["Q8_0"](torch.full((1, 32), torch.nan), None)
    with pytest.raises(CheckpointError, match="importance of shape"):
        ENCODERS["Q8_0"](torch.zeros(1, 32), torch.ones(31))
    with pytest.raises(CheckpointError, match="negative"):
        ENCODERS["Q8_0"](torch.zeros(1, 32), -torch.ones(32))
    with pytest.raises(CheckpointError, match="65504"):
        ENCODERS["F16"](torch.full((1, 32), 1e6), None)


def test_the_ladder_of_types():
    assert types_above("Q4_K", 256) == ("Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0", "BF16", "F16", "F32")
    assert types_above("Q4_1", 576) == ("Q5_0", "Q5_1", "Q8_0", "BF16", "F16", "F32")
    assert types_above("IQ2_XXS", 256)[0] == "Q2_K"
    assert types_above("F32", 256) == ()
    assert smallest_not_below(4.5, 256) == "Q4_K"
    assert smallest_not_below(4.5, 576) == "IQ4_NL"
    assert smallest_not_below(4.6, 256) == "Q4_1"
    assert bits_per_weight("Q6_K") == 6.5625
    with pytest.raises(CheckpointError, match="33"):
        smallest_not_below(33, 256)


def test_the_ladder_climbs():
    """Equal bits in the order of their errors, so that the last of equals is the closest."""
    weight = EXPECTED["weights"]
    for equals in (["MXFP4", "IQ4_XS"], ["Q4_0", "IQ4_NL", "Q4_K"], ["Q5_0", "Q5_K"], ["BF16", "F16"]):
        assert len({bits_per_weight(kind) for kind in equals}) == 1
        assert [kind for kind in ENCODERS if kind in equals] == equals
        errors = [mean_square(kind, weight) for kind in equals]
        assert errors == sorted(errors, reverse=True)
