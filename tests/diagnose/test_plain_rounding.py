"""Which integer scheme stands for a stored weight: its own where it has one, else one of about its bits."""

import pytest

from quantriage.diagnose.plain_rounding import standing_scheme
from quantriage.numerics.schemes import Scheme
from quantriage.numerics.stored_weight import StoredWeight


def stored(levels: int, bits: float, scheme: str | None = None) -> StoredWeight:
    return StoredWeight(
        layout="x",
        shape=(64, 64),
        levels=levels,
        nbytes=int(64 * 64 * bits / 8),
        codes=None,
        scale=None,
        scale_dtype="float16",
        scheme=None if scheme is None else Scheme.parse(scheme),
    )


@pytest.mark.parametrize(
    ("weight", "columns", "expected"),
    [
        (stored(16, 4.25, "w4s-g64"), 64, "w4s-g64"),  # says it itself
        (stored(16, 4.25, "w4s-g64"), 96, "w4s-channel"),  # a short last group
        (stored(16, 4.5), 64, "w4a-g32"),  # Q4_K, NF4
        (stored(16, 4.5), 60, "w4a-channel"),
        (stored(64, 6.6), 64, "w6a-g32"),  # Q6_K
        (stored(256, 8.0), 64, "w6a-g32"),  # FP8: three bits of mantissa
        (stored(65536, 2.1), 64, "w2a-g32"),  # codes of several weights together: what the bytes hold
        (stored(2, 1.6), 64, "w2a-g32"),
        (stored(65536, 16.0), 64, None),  # loses nothing
    ],
)
def test_the_scheme_that_stands_for_a_weight(
    weight: StoredWeight, columns: int, expected: str | None
) -> None:
    found = standing_scheme(weight, columns)
    assert (None if found is None else str(found)) == expected
