"""Floating-point grids of eight and four bits: what each bit pattern is worth.

A code is the bit pattern itself, so that what a file stores can be looked at, counted and compared without
loss: the two zeros are two codes, and a NaN keeps its own. E8M0 is no grid for weights but for the shared
scales of the MX formats. Encoding lives with whoever quantizes; here values are only read.

Sources: OCP 8-bit Floating Point Specification (E4M3, E5M2); OCP Microscaling Formats v1.0 (E2M1, E8M0).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

E8M0_BIAS = 127
_FLOAT64_BIAS, _FLOAT64_MANTISSA = 1023, 52
_HALVES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # E2M1 without its sign


@dataclass(frozen=True)
class FloatGrid:
    """A floating-point grid. `name`: "e4m3" (no infinities), "e5m2" or "e2m1"."""

    name: str
    bits: int

    @property
    def levels(self) -> int:
        """Number of bit patterns."""
        return 1 << self.bits

    def decode(self, codes: Tensor) -> Tensor:
        """Values in float32, exact, of uint8 bit patterns 0 .. levels - 1, in the codes' shape."""
        if self == E2M1:
            table = torch.tensor([*_HALVES, *(-half for half in _HALVES)], dtype=torch.float32)
            return table.index_select(0, codes.reshape(-1).to(torch.int32)).view(codes.shape)
        dtype = torch.float8_e4m3fn if self == E4M3 else torch.float8_e5m2
        return codes.view(dtype).to(torch.float32)


E4M3 = FloatGrid("e4m3", 8)
E5M2 = FloatGrid("e5m2", 8)
E2M1 = FloatGrid("e2m1", 4)


def decode_e8m0(exponents: Tensor) -> Tensor:
    """Powers of two in float32, exact, of uint8 exponents; 255 is NaN.

    Built as the bits of a float64: exponent 0 is 2**-127, which float32 holds only as a subnormal.
    """
    bits = (exponents.to(torch.int64) + (_FLOAT64_BIAS - E8M0_BIAS)) << _FLOAT64_MANTISSA
    return bits.view(torch.float64).to(torch.float32).masked_fill(exponents == 255, torch.nan)
