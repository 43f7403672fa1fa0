"""Every calibration set against every domain: how far their second moments disagree, site by site.

One pass of each text instead of one for each pair: while a block is in memory all texts pass it, and a pair
is then a product of two matrices. What a pair gives is the ratio of `coverage_moments.mismatch`, averaged
over inputs as a geometric mean, since a few inputs differ by orders of magnitude.
"""

import math
from collections.abc import Sequence

from torch import nn

from quantriage.diagnose.coverage_moments import damped_factor, gather_moments, mismatch, side_by_side
from quantriage.stream.stream import Stream

_LEAST = 1e-6  # of a ratio, so that its logarithm stays finite


def mismatch_matrix(sets: Sequence[Stream], domains: Sequence[Stream]) -> list[list[float]]:
    """[set][domain] geometric mean over inputs of the mismatch, 1 for a text against itself.

    Memory: one block, and for each of its distinct inputs one [in, in] for each text.
    """
    logs = [[0.0] * len(domains) for _ in sets]
    count = 0

    def on_block(index: int, block: nn.Module) -> None:
        nonlocal count
        sites = tuple(s for s in sets[0].sites if s.block == index)
        theirs = [gather_moments(stream, index, block, sites) for stream in domains]
        produced = [{key: m.second_moment() for key, m in found.items() if m.tokens} for found in theirs]
        for row, stream in enumerate(sets):
            for key, moments in gather_moments(stream, index, block, sites).items():
                if not moments.tokens or any(key not in found for found in produced):
                    continue  # an expert that one of the texts never reached
                own = moments.second_moment()
                factor = damped_factor(own)
                for column, found in enumerate(produced):
                    logs[row][column] += math.log(max(_LEAST, mismatch(found[key], factor, own)))
                count += row == 0

    side_by_side((*sets, *domains), on_block, "mismatch")
    return [[math.exp(value / max(1, count)) for value in row] for row in logs]
