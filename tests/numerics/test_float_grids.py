"""Float grids against the definitions of their formats, bit pattern by bit pattern."""

import math

import pytest
import torch

from quantriage.numerics.float_grids import E2M1, E4M3, E5M2, decode_e8m0


def by_definition(code: int, exponent_bits: int, mantissa_bits: int, bias: int) -> float:
    """Sign, exponent, mantissa, with subnormals; no special values."""
    mantissa = code & ((1 << mantissa_bits) - 1)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    sign = -1.0 if code >> (mantissa_bits + exponent_bits) else 1.0
    if exponent == 0:
        return sign * math.ldexp(mantissa, 1 - bias - mantissa_bits)
    return sign * math.ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits)


def special_e5m2(code: int) -> float | None:
    if code & 0x7C != 0x7C:
        return None
    return math.nan if code & 3 else math.copysign(math.inf, -1 if code >> 7 else 1)


GRIDS = [
    (E4M3, (4, 3, 7), lambda code: math.nan if code & 0x7F == 0x7F else None),
    (E5M2, (5, 2, 15), special_e5m2),
    (E2M1, (2, 1, 1), lambda code: None),
]


@pytest.mark.parametrize(("grid", "parts", "special"), GRIDS, ids=lambda g: getattr(g, "name", None))
def test_every_bit_pattern_has_the_value_of_its_definition(grid, parts, special):
    codes = torch.arange(grid.levels, dtype=torch.uint8)
    expected = [
        by_definition(code, *parts) if special(code) is None else special(code) for code in codes.tolist()
    ]
    found = grid.decode(codes.view(2, -1))
    assert found.dtype == torch.float32
    assert found.shape == (2, grid.levels // 2)
    table = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.view(-1).double(), table, rtol=0, atol=0, equal_nan=True)
    real = ~table.isnan()
    assert torch.equal(torch.signbit(found.view(-1))[real], torch.signbit(table)[real])


def test_exponents():
    found = decode_e8m0(torch.arange(256, dtype=torch.uint8)).tolist()
    assert found[:255] == [math.ldexp(1.0, exponent - 127) for exponent in range(255)]
    assert math.isnan(found[255])
