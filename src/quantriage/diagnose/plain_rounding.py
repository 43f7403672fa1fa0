"""The integer scheme that stands for how a candidate stores a weight: what its bits explain by themselves.

A loss is judged against plain rounding of the reference at the same bits. Integer formats say their scheme;
the others (k-quants, NF4, floating point) are stood for by an asymmetric integer grid of as many bits in
groups of 32, which lies near them; 8 floating-point bits by 6 integer bits, for three bits of mantissa leave
about that error. It is a yardstick and no model of the format: verdicts allow a factor beside it.
"""

import math

from quantriage.numerics.schemes import IntGrid, PerChannel, PerGroup, Scheme
from quantriage.numerics.stored_weight import StoredWeight

_GROUP = 32
_FLOAT8_BITS = 6


def standing_scheme(stored: StoredWeight, columns: int) -> Scheme | None:
    """The scheme for a weight with rows of `columns`; None if it is stored too finely to lose anything."""
    scheme = stored.scheme
    if scheme is not None:
        divides = not isinstance(scheme.granularity, PerGroup) or columns % scheme.granularity.size == 0
        return scheme if divides else Scheme(scheme.grid, PerChannel(), scheme.scale_dtype)
    bits = math.floor(min(math.log2(max(stored.levels, 2)), stored.bits_per_weight))
    if bits > 8:
        return None
    bits = _FLOAT8_BITS if bits == 8 else max(bits, 2)
    return Scheme(IntGrid(bits, False), PerChannel() if columns % _GROUP else PerGroup(_GROUP))
