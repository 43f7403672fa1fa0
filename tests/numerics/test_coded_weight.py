"""One rule for all layouts of scales, against a loop over single weights."""

import pytest
import torch

from quantriage.numerics.coded_weight import CodedWeight, PerBlock, coded, scale_shape
from quantriage.numerics.float_grids import E2M1, E4M3
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import IntGrid, PerChannel, PerGroup, PerTensor, Scheme

SHAPE = (10, 24)
LAYOUTS = [
    PerTensor(),
    PerChannel(),
    PerGroup(8),
    PerGroup(1),
    PerBlock(5, 8),
    PerBlock(4, 16),
    PerBlock(1, 24),
    PerBlock(3, 7),
    PerBlock(128, 128),
    PerBlock(4, 10**30),
]


def scale_of(layout, row: int, column: int) -> tuple[int, int]:
    match layout:
        case PerTensor():
            return 0, 0
        case PerChannel():
            return row, 0
        case PerGroup(size):
            return row, column // size
    return row // layout.rows, column // layout.columns


def random_weight(grid, layout, asymmetric: bool = False) -> CodedWeight:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, grid.levels, SHAPE, dtype=torch.uint8, generator=generator)
    codes[codes & 0x7F == 0x7F] = 0  # no NaN
    size = scale_shape(layout, SHAPE)
    scale = torch.randn(size, generator=generator)
    zero = torch.randint(0, grid.levels, size, dtype=torch.uint8, generator=generator)
    return CodedWeight(grid, layout, codes, scale, "float32", zero if asymmetric else None)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "e4m3", "e2m1"])
def test_each_weight_is_its_code_less_zero_times_its_scale(kind, layout):
    grid = {"e4m3": E4M3, "e2m1": E2M1}.get(kind, IntGrid(8, kind == "symmetric"))
    weight = random_weight(grid, layout, kind == "asymmetric")
    found = weight.dequantize()
    for row in range(SHAPE[0]):
        for column in range(SHAPE[1]):
            place = scale_of(layout, row, column)
            code = weight.codes[row, column]
            value = code.float() - 128 if isinstance(grid, IntGrid) else grid.decode(code.view(1))[0]
            if weight.zero_point is not None:
                value = code.float() - weight.zero_point[place].float()
            assert found[row, column] == value * weight.scale[place]


def test_scattered_columns_take_the_scale_and_zero_of_their_group():
    plain = random_weight(IntGrid(4, False), PerGroup(8), asymmetric=True)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    groups = torch.arange(24) // 8
    mixed = CodedWeight(
        plain.grid,
        plain.layout,
        plain.codes[:, order],
        plain.scale,
        "float32",
        plain.zero_point,
        groups[order],
    )
    assert torch.equal(mixed.dequantize(), plain.dequantize()[:, order])


def test_dequantizing_changes_no_stored_tensor():
    weight = random_weight(IntGrid(8, False), PerBlock(4, 16), asymmetric=True)
    before = [part.clone() for part in (weight.codes, weight.scale, weight.zero_point)]
    weight.dequantize()
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, (weight.codes, weight.scale, weight.zero_point), strict=True)
    )


@pytest.mark.parametrize("text", ["w4a-g8", "w8s-channel", "w3s-tensor"])
def test_an_integer_weight_in_runs_keeps_its_scheme_and_values(text):
    scheme = Scheme.parse(text, "float16")
    one = random_weight(scheme.grid, scheme.granularity, not scheme.grid.symmetric)
    weight = QuantizedTensor(scheme, one.codes, one.scale.half(), one.zero_point)
    assert torch.equal(coded(weight).dequantize(), weight.dequantize())
    stored = coded(weight).stored("some", 7)
    assert stored.scheme == scheme
    assert (stored.levels, stored.nbytes, stored.scale_dtype) == (scheme.grid.levels, 7, "float16")


SCATTERED = CodedWeight(
    grid=IntGrid(4, True),
    layout=PerGroup(12),
    codes=torch.zeros(SHAPE, dtype=torch.uint8),
    scale=torch.ones(10, 2),
    scale_dtype="float32",
    column_group=torch.arange(24) % 2,
)


@pytest.mark.parametrize(
    "weight",
    [random_weight(E4M3, PerChannel()), random_weight(IntGrid(8, True), PerBlock(4, 8)), SCATTERED],
    ids=["float", "blocks", "scattered"],
)
def test_what_no_integer_scheme_says_has_none(weight):
    assert weight.stored("some", 1).scheme is None


def test_groups_that_do_not_divide_a_row():
    with pytest.raises(ValueError, match="24 is not a multiple of group size 16"):
        scale_shape(PerGroup(16), SHAPE)
